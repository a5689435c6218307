"""Masked softmax attention in XLA alone.

Two kernels compute the same numbers: ``whole`` holds all scores, ``blocked`` takes the queries
block by block and, where rows lie in their natural order, leaves out the keys that no query of
the block can see.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lm.ops.attention.pattern import HIDDEN, Pattern, Where, scaled, visible

BLOCK = 128
"""Queries a block; measured on a CPU, where 128 was the fastest of 64, 128 and 256."""


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Where,
    key: Where,
    pattern: Pattern,
    *,
    whole: bool,
) -> Float[Array, "B T N H"]:
    """Attention with all scores at once, or a block of queries after the other.

    A shard's queries are fewer than its keys, so all keys are then looked at.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    # Heads lead, so that both products are plain batched matrix products; query heads of one key
    # head share its product.
    q_BKGTH = scaled(q_BTNH, pattern).reshape(B, T, K, N // K, H)
    q_BKGTH = q_BKGTH.transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    step = T if whole or T == 1 else BLOCK
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
