"""cuDNN's fused attention, for NVIDIA GPUs, by way of ``jax.nn.dot_product_attention``.

cuDNN skips what causality hides, by index.  The rest of the mask (segments, windows, the positions
of a shard) travels as an additive table of B x T x S in the dtype of the queries, shared by all
heads: exact for any positions, but it grows with the square of the length, so ``auto`` takes the
kernel only up to ``LONGEST``.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm.ops.attention.pattern import Pattern, Where, visible

LONGEST = 8192
"""Longest row for which ``auto`` takes the kernel: the table is then 128 MiB a row."""
WIDEST = 256
"""Widest heads; on GPUs before Hopper cuDNN itself stops at 128."""
DTYPES = ("bfloat16", "float16")


def refusal(pattern: Pattern, length: int, keys: int, head_width: int, dtype: Any) -> str | None:
    """Why the kernel cannot do it, with what would work; None: it can."""
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        return f"cudnn computes in bfloat16 or float16, not in {name}; set compute_dtype"
    if pattern.soft_cap is not None:
        return f"cudnn has no soft cap (here {pattern.soft_cap})"
    if head_width % 8 or head_width > WIDEST:
        return f"cudnn wants a head_width that is a multiple of 8 up to {WIDEST}, not {head_width}"
    if length % 2 or keys % 2:
        return f"cudnn wants even lengths, not {length} queries over {keys} keys"
    return None


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Where,
    key: Where,
    pattern: Pattern,
) -> Float[Array, "B T N H"]:
    """Attention of any queries over any keys; the order of either does not matter."""
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, implementation="cudnn", **arguments(query, key, pattern)
    )


def arguments(query: Where, key: Where, pattern: Pattern) -> dict[str, Any]:
    """What ``jax.nn.dot_product_attention`` is told beside its operands.

    The window is part of the table: cuDNN's own window excludes one.
    """
    same_tokens = pattern.ordered and query.segments.shape == key.segments.shape
    return {
        "mask": visible(query, key, pattern)[:, None],
        "scale": pattern.scale,
        "is_causal": pattern.causal and same_tokens,
    }
