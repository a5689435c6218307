"""Where tokens stand, who sees whom, and how scores are scaled.

A mask is a function of the segment and the position of query and key, never of array indices, so
packed documents and windows mean the same in every kernel.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HIDDEN = -1e30
"""The score of a pair that may not see each other; finite, so that no row becomes NaN."""
ATTENTION = "attention"
"""Checkpoint name of what attention gives.  ``splash`` and the streamed ``blocked`` name their
log-normalisers too: a policy that saves the name spares the backward pass the forward kernel."""
VISIBLE = "visible_blocks_"
"""A kernel that skips blocks which nobody sees runs in a named scope: this and the share of its
grid that it computes."""


class Pattern(NamedTuple):
    """Who sees whom, and how scores are scaled."""

    causal: bool = True
    """A query sees no later position."""
    window: int | None = None
    """How many positions back a query sees, itself among them; None: all."""
    scale: float | None = None
    """Factor of the scores; None: 1/sqrt(H)."""
    soft_cap: float | None = None
    """Scores become ``soft_cap * tanh(scores / soft_cap)`` (Gemma 2)."""
    ordered: bool = True
    """Queries and keys are the same tokens, and within a segment, which is one run of the row,
    each position follows the one before: there the distance of two tokens is that of their
    indices.  True of the rows of training and evaluation, not of a cache."""


class Where(NamedTuple):
    """Where tokens stand: segment (0 is padding) and position within it."""

    segments: Int[Array, "B T"]
    positions: Int[Array, "B T"]


def visible(query: Where, key: Where, pattern: Pattern) -> Bool[Array, "B T S"]:
    """Which keys each query may see: its own segment, not later, and at most ``window`` back.

    ``window`` counts the query itself; without ``causal`` it reaches to both sides.
    """
    distance_BTS = query.positions[:, :, None] - key.positions[:, None, :]
    seen_BTS = query.segments[:, :, None] == key.segments[:, None, :]
    if pattern.causal:
        seen_BTS &= distance_BTS >= 0
    if pattern.window is not None:
        seen_BTS &= jnp.abs(distance_BTS) < pattern.window
    return seen_BTS


def reach(pattern: Pattern) -> tuple[int | None, int | None]:
    """The least and the greatest distance, query less key, at which a key is seen; None: any."""
    most = None if pattern.window is None else pattern.window - 1
    least = 0 if pattern.causal else None if most is None else -most
    return least, most


def scaled(q_BTNH: Float[Array, "B T N H"], pattern: Pattern) -> Float[Array, "B T N H"]:
    """The queries times the factor of the scores.

    The product is float32: a factor rounded to bfloat16 would be another temperature.
    """
    scale = q_BTNH.shape[-1] ** -0.5 if pattern.scale is None else pattern.scale
    return (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)
