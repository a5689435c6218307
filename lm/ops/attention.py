"""Masked softmax attention.

A mask is a function of the segment and the position of query and key, never of array indices, so
packed documents and windows mean the same in every kernel.  Two kernels compute the same numbers:
``whole`` holds all scores, ``blocked`` takes the queries block by block and, where rows lie in
their natural order, leaves out the keys that no query of the block can see.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Kernel = Literal["auto", "whole", "blocked"]
BLOCK = 128
"""Queries a block; measured on a CPU, where 128 was the fastest of 64, 128 and 256."""
HIDDEN = -1e30
"""Added to the score of a pair that may not see each other; finite, so no row becomes NaN."""


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


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Where,
    key: Where,
    pattern: Pattern,
    kernel: Kernel = "auto",
) -> Float[Array, "B T N H"]:
    """Softmax attention of grouped query heads (Ainslie 2023, arXiv:2305.13245).

    Scores and softmax are float32; the result has the dtype of ``q_BTNH``.  A query that sees no
    key gives a mean of values, which nothing may read.

    Args:
        q_BTNH: queries; N is a multiple of the K key heads.
        k_BSKH: keys.
        v_BSKH: values.
        query: where the queries stand.
        key: where the keys stand.
        pattern: who sees whom.
        kernel: ``whole``, ``blocked``, or ``auto`` by length.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    scale = H**-0.5 if pattern.scale is None else pattern.scale
    # Heads lead, so that both products are plain batched matrix products; query heads of one key
    # head share its product.
    q_BKGTH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H)
    q_BKGTH = q_BKGTH.transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    whole = kernel == "whole" or (kernel == "auto" and T < 2 * BLOCK) or T == 1
    step = T if whole else BLOCK
    may_skip = pattern.causal and pattern.ordered and k_BSKH.shape[1] == T
    outputs = []
    for start in range(0, T, step):
        stop = min(start + step, T)
        last = stop if may_skip else k_BSKH.shape[1]
        reach = pattern.window or start + 1
        first = max(0, start + 1 - reach) // step * step if may_skip else 0
        rows, keys = slice(start, stop), slice(first, last)
        seen_BTS = visible(
            Where(query.segments[:, rows], query.positions[:, rows]),
            Where(key.segments[:, keys], key.positions[:, keys]),
            pattern,
        )
        outputs.append(
            _weighted(
                q_BKGTH[:, :, :, rows],
                k_BKSH[:, :, keys],
                v_BKSH[:, :, keys],
                seen_BTS,
                pattern.soft_cap,
            )
        )
    o_BKGTH = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=3)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _weighted(
    q_BKGTH: Float[Array, "B K G T H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    seen_BTS: Bool[Array, "B T S"],
    soft_cap: float | None,
) -> Float[Array, "B K G T H"]:
    B, K, G, T, H = q_BKGTH.shape
    S = k_BKSH.shape[2]
    q_BKRH = q_BKGTH.reshape(B, K, G * T, H)
    scores = jnp.einsum("bkrh,bksh->bkrs", q_BKRH, k_BKSH, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K, G, T, S)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = scores + jnp.where(seen_BTS, 0.0, HIDDEN)[:, None, None]
    highest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = weights.sum(-1)
    # Normalised after the product: H divisions a query in place of S.
    mixed = jnp.einsum(
        "bkrs,bksh->bkrh",
        weights.astype(v_BKSH.dtype).reshape(B, K, G * T, S),
        v_BKSH,
        preferred_element_type=jnp.float32,
    )
    return (mixed.reshape(B, K, G, T, H) / total[..., None]).astype(q_BKGTH.dtype)
