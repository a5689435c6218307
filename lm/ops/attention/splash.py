"""Splash attention: jax's Pallas kernel for TPUs, which skips blocks that nobody sees.

The kernel knows indices, not positions.  In rows of natural order (``Pattern.ordered``) a segment
is one run of consecutive positions, so for two tokens of one segment the distance of positions is
the distance of indices: *index-causal, index-windowed and same segment* is the very mask of
``pattern.visible``.  Elsewhere, over a cache say, it is another mask, and the kernel is refused.

Everything here is local to a device: where several devices take part, call it in a ``shard_map``.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as tables,
)
from jaxtyping import Array, Float

from lm.ops.attention.pattern import ATTENTION, VISIBLE, Pattern, Where, reach, scaled
from lm.ops.attention.zigzag import Shard, natural, zigzag

LANES = 128
"""Blocks are whole multiples of a TPU's lanes."""
SHORTEST = 512
"""Shorter rows are left to XLA, whose scores are then small."""
RESIDENT, STREAMED = 1024, 512
"""Longest blocks: of what stays in fast memory (queries in the forward pass and for their own
gradient, keys for theirs) and of what streams past it.  A resident block of 1024 does 1024 FLOPs
for each byte that streams in (bf16), above the ridge of every TPU so far (v6e: 560)."""
SHARE = 8
"""A resident block is at most this part of a row (or of 512 tokens, if more): blocks that the
diagonal crosses are computed whole."""


def refusal(pattern: Pattern, length: int, keys: int, shards: int) -> str | None:
    """Why the kernel cannot do it, with what would work; None: it can."""
    if not pattern.ordered or keys != length:
        return (
            "splash knows indices, not positions, and here queries and keys are not the same "
            "tokens in row order (decoding over a cache?)"
        )
    unit = LANES if shards == 1 else 2 * LANES * shards
    if length % unit:
        least = -(-length // unit) * unit
        return f"splash wants lengths in multiples of {unit}, as {least}, not {length}"
    return None


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Where,
    key: Where,
    pattern: Pattern,
    shard: Shard | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention of rows in natural order, or of one shard of them (keys in shard order)."""
    length, count = k_BSKH.shape[1], 1 if shard is None else shard.count
    kernel: Any = _kernel(length, count, reach(pattern), pattern.soft_cap, interpret)
    seen = _share_seen(kernel)
    k_BSKH, v_BSKH, key_segments = (natural(x, count) for x in (k_BSKH, v_BSKH, key.segments))
    if shard is not None and count > 1:
        kernel = _of_shard(kernel, shard)
    one_row = jax.vmap(lambda q, k, v, ids, theirs: kernel(q, k, v, splash.SegmentIds(ids, theirs)))
    heads_first = partial(jnp.swapaxes, axis1=1, axis2=2)
    with jax.named_scope(f"{VISIBLE}{seen:.4f}"):
        o_BNTH = one_row(
            heads_first(scaled(q_BTNH, pattern)),
            heads_first(k_BSKH),
            heads_first(v_BSKH),
            query.segments,
            key_segments,
        )
    return heads_first(o_BNTH)


def block_sizes(length: int, count: int) -> splash.BlockSizes:
    """Blocks that divide a row's chunks, so that no block of queries spans two of them."""
    most = min(RESIDENT, max(STREAMED, length // SHARE))
    chunk = length if count == 1 else length // (2 * count)
    q_stays, q_streams = _block(chunk, most), _block(chunk, STREAMED)
    k_stays, k_streams = _block(length, most), _block(length, STREAMED)
    return splash.BlockSizes(
        block_q=q_stays,
        block_kv=k_streams,
        block_kv_compute=k_streams,
        block_q_dq=q_stays,
        block_kv_dq=k_streams,
        block_q_dkv=q_streams,
        block_kv_dkv=k_stays,
        block_kv_dkv_compute=_block(k_stays, STREAMED),
    )


def _block(length: int, most: int) -> int:
    """The longest multiple of ``LANES`` up to ``most`` that divides ``length``."""
    return max(n for n in range(LANES, most + 1, LANES) if length % n == 0)


class _Mask(masks.Mask):
    """Who sees whom among the indices of a row, queries in shard order.

    The kernel computes the mask itself (``mask_function`` of the queries' natural indices, which
    ``q_sequence`` lists) and asks here only whether some or all of a block is visible.  The answer
    is a tiny array with the same ``any()`` and ``all()`` as the block: a row of 128k tokens has
    1.7e10 pairs.
    """

    def __init__(self, length: int, count: int, bounds: tuple[int | None, int | None]) -> None:
        self.length, self.count, self.bounds = length, count, bounds
        self.q_sequence = zigzag(length, count).astype(np.int32)
        least, most = bounds

        def seen(q: Array, k: Array) -> Array:
            found = q - k >= (-length if least is None else least)
            return found if most is None else found & (q - k <= most)

        self.mask_function = seen

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.length

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        queries = self.q_sequence[block[0]]
        nearest = int(queries[0]) - (block[1].stop - 1)
        farthest = int(queries[-1]) - block[1].start
        least, most = (
            default if bound is None else bound
            for bound, default in zip(self.bounds, (-self.length, self.length), strict=True)
        )
        some = farthest >= least and nearest <= most
        return np.array([[some, nearest >= least and farthest <= most]])


@lru_cache(maxsize=64)
def _kernel(
    length: int,
    count: int,
    bounds: tuple[int | None, int | None],
    soft_cap: float | None,
    interpret: bool,  # noqa: FBT001
) -> splash.SplashAttentionKernel:
    """The kernel of a whole row, its tables of visible blocks in numpy."""
    # jax's own maker of kernels puts the tables on a device, but the devices compiled for may not
    # be here; and what is cached must not be a tracer of whoever asked first.
    mask = masks.MultiHeadMask([_Mask(length, count, bounds)])  # one mask serves all heads
    sizes, shared = block_sizes(length, count), {"head_shards": 1, "q_seq_shards": count}
    forward, seen = tables.process_mask(mask, (sizes.block_q, sizes.block_kv), **shared)
    dq, _ = tables.process_mask(mask, (sizes.block_q_dq, sizes.block_kv_dq), **shared)
    dkv, _ = tables.process_mask_dkv(mask, (sizes.block_q_dkv, sizes.block_kv_dkv), **shared)
    return splash.SplashAttentionKernel(
        forward,
        dq,
        dkv,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=ATTENTION,
        mask_function=seen,
        interpret=interpret,
    )


def _share_seen(kernel: splash.SplashAttentionKernel) -> float:
    """Of the blocks in the kernel's grid, how many are computed."""
    blocks = kernel.fwd_mask_info.block_mask
    return 1.0 if blocks is None else np.count_nonzero(blocks) / blocks.size


def _of_shard(kernel: splash.SplashAttentionKernel, shard: Shard) -> splash.SplashAttentionKernel:
    """The same with the tables of one shard: every table lists the queries' blocks on one axis."""

    def part(table: np.ndarray) -> Array:
        axis = 0 if table.ndim == 1 else 1
        size = table.shape[axis] // shard.count
        return lax.dynamic_slice_in_dim(jnp.asarray(table), shard.index * size, size, axis)

    return jax.tree.map(part, kernel)
