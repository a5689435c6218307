"""Rotary position embedding (Su 2021, arXiv:2104.09864), halves rotated as Hugging Face does."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Angles(NamedTuple):
    """Cosine and sine of every position and pair of features; float32."""

    cos: Float[Array, "B T half"]
    sin: Float[Array, "B T half"]


def angles(positions_BT: Int[Array, "B T"], frequencies: Float[Array, " half"]) -> Angles:
    """The rotation of each position; ``frequencies`` in radians a position."""
    turns = positions_BT.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    return Angles(jnp.cos(turns), jnp.sin(turns))


def rotate(x_BTNH: Float[Array, "B T N H"], by: Angles) -> Float[Array, "B T N H"]:
    """Rotate feature i against feature i + H/2; computed in float32, dtype kept."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = by.cos[:, :, None, :], by.sin[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)
