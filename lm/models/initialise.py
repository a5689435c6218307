"""Drawing parameters from their leaves, each by its own name."""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm.batch import Leaf, Params


def initialise(
    key: Array, shapes: Params, leaves: Params, *, std: float | None, depth: int
) -> Params:
    """Parameters of the given shapes, float32.

    Norm scales are one and biases zero.  Matrices are normal with deviation ``std``, or
    1/sqrt(fan_in) where it is None; those that write to the residual stream are divided by
    sqrt(2 depth), so that the stream keeps its size (Radford 2019, GPT-2).  Tables have deviation
    ``std``, or 1/sqrt(width).
    """

    def draw(path: str, shape: tuple[int, ...], leaf: Leaf) -> Array:
        if leaf.kind == "norm":
            return jnp.ones(shape, jnp.float32)
        if leaf.kind == "bias":
            return jnp.zeros(shape, jnp.float32)
        if leaf.kind == "matrix":
            deviation = std or 1.0 / math.sqrt(leaf.fan_in)
            if leaf.axes[-1] == "embed":
                deviation /= math.sqrt(2 * depth)
        else:
            deviation = std or 1.0 / math.sqrt(leaf.fan_out)
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return deviation * jax.random.normal(own, shape, jnp.float32)

    def over(shape: Any, leaf: Any, path: str) -> Any:
        if isinstance(leaf, Mapping):
            return {name: over(shape[name], leaf[name], f"{path}.{name}") for name in leaf}
        return draw(path, tuple(shape.shape), leaf)

    return over(shapes, leaves, "")
