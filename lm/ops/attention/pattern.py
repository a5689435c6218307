"""Where tokens stand, who sees whom, and how scores are scaled.

A mask is a function of the segment and the position of query and key, never of array indices, so
packed documents and windows mean the same in every kernel.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


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
    """Queries and keys are the same tokens in row order: no visible key stands at a later index
    than its query."""


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
