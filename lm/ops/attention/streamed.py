"""Attention in XLA for long rows: block by block on both sides, without a row of scores.

The forward pass keeps the output and the log-normaliser of each query; the backward pass computes
each block of scores again (FlashAttention-2, Dao 2023, arXiv:2307.08691).  Loops run over the key
blocks that a block of queries can see, and no others: their bounds may be traced, so the shards of
a row skip too.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from lm.ops.attention.pattern import (
    ATTENTION,
    HIDDEN,
    Pattern,
    Where,
    reach,
    scaled,
    visible,
)
from lm.ops.attention.zigzag import Shard, natural, starts

QUERIES, KEYS = 256, 512
"""Tokens a block."""


class _Rows(NamedTuple):
    """What a pass over a row needs beside queries, keys and values."""

    query: Where
    """Of blocks of queries, [J, B, T]."""
    key: Where
    """Of all keys, [B, S]."""
    first: Int[Array, " J"]
    last: Int[Array, " J"]
    """The key blocks that each block of queries may see: from ``first`` up to ``last``."""


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Where,
    key: Where,
    pattern: Pattern,
    shard: Shard | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of whole rows, or of one shard of rows in shard order."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    if shard is not None:
        k_BSKH, v_BSKH = natural(k_BSKH, shard.count), natural(v_BSKH, shard.count)
        key = Where(*(natural(x, shard.count) for x in key))
    block = QUERIES if shard is None else math.gcd(T // 2, QUERIES)
    # Padded keys have segment -1, which no query has; padded queries are cut off again.
    q_BTNH, query = _padded(scaled(q_BTNH, pattern), block), _padded_where(query, block, -2)
    k_BSKH, v_BSKH = _padded(k_BSKH, KEYS), _padded(v_BSKH, KEYS)
    key = _padded_where(key, KEYS, -1)
    J = q_BTNH.shape[1] // block
    begins = jnp.arange(J) * block if shard is None else starts(shard, S, block)
    same_tokens = pattern.ordered and (shard is not None or T == S)
    first, last = _bounds(begins, block, k_BSKH.shape[1] // KEYS, pattern, skip=same_tokens)
    rows = _Rows(Where(*(_blocks(x, J) for x in query)), key, first, last)
    q_JBKGTH = q_BTNH.reshape(B, J, block, K, N // K, H).transpose(1, 0, 3, 4, 2, 5)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    o_JBKGTH: Array = _streamed(q_JBKGTH, k_BKSH, v_BKSH, rows, pattern)
    return o_JBKGTH.transpose(1, 0, 4, 2, 3, 5).reshape(B, J * block, N, H)[:, :T]


def _padded(x: Array, block: int, value: int = 0) -> Array:
    extra = -x.shape[1] % block
    widths = [(0, extra if axis == 1 else 0) for axis in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value) if extra else x


def _padded_where(where: Where, block: int, segment: int) -> Where:
    return Where(_padded(where.segments, block, segment), _padded(where.positions, block))


def _blocks(x_BT: Int[Array, "B T"], count: int) -> Int[Array, "J B block"]:
    return jnp.swapaxes(x_BT.reshape(x_BT.shape[0], count, -1), 0, 1)


def _bounds(
    begins: Int[Array, " J"], block: int, count: int, pattern: Pattern, *, skip: bool
) -> tuple[Int[Array, " J"], Int[Array, " J"]]:
    """Which of ``count`` key blocks some query of each block can see, by index."""
    first, last = jnp.zeros_like(begins), jnp.full_like(begins, count)
    least, most = reach(pattern) if skip else (None, None)
    if most is not None:
        first = jnp.maximum(begins - most, 0) // KEYS
    if least is not None:
        last = jnp.minimum((begins + block - 1 - least) // KEYS + 1, count)
    return first, last


def _scores(
    q_BKGTH: Float[Array, "B K G T H"],
    k_BKSH: Float[Array, "B K S H"],
    seen_BTS: Bool[Array, "B T S"],
    soft_cap: float | None,
) -> Float[Array, "B K G T S"]:
    scores = jnp.einsum("bkgth,bksh->bkgts", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    return jnp.where(seen_BTS[:, None, None], scores, HIDDEN)


def _seen(query: Where, key: Where, at: Array, pattern: Pattern) -> Bool[Array, "B T S"]:
    return visible(query, Where(*(_at(x, at, axis=1) for x in key)), pattern)


def _at(x: Array, block: Array, axis: int = 2) -> Array:
    return lax.dynamic_slice_in_dim(x, block * KEYS, KEYS, axis)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _streamed(
    q_JBKGTH: Float[Array, "J B K G T H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    rows: _Rows,
    pattern: Pattern,
) -> Float[Array, "J B K G T H"]:
    return _forward(q_JBKGTH, k_BKSH, v_BKSH, rows, pattern)[0]


def _forward(q_JBKGTH: Array, k_BKSH: Array, v_BKSH: Array, rows: _Rows, pattern: Pattern):
    """The output, and what the backward pass needs."""

    def of_queries(block: tuple[Array, Where, Array, Array]) -> tuple[Array, Array]:
        q, query, first, last = block

        def add(at: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            highest, total, mixed = state
            seen_BTS = _seen(query, rows.key, at, pattern)
            scores = _scores(q, _at(k_BKSH, at), seen_BTS, pattern.soft_cap)
            higher = jnp.maximum(highest, scores.max(-1))
            fade, weights = jnp.exp(highest - higher), jnp.exp(scores - higher[..., None])
            v = _at(v_BKSH, at)
            more = jnp.einsum(
                "bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            return higher, fade * total + weights.sum(-1), fade[..., None] * mixed + more

        none = jnp.zeros(q.shape, jnp.float32)
        start = (jnp.full(q.shape[:-1], HIDDEN), none[..., 0], none)
        highest, total, mixed = lax.fori_loop(first, last, add, start)
        return (mixed / total[..., None]).astype(q.dtype), highest + jnp.log(total)

    o_JBKGTH, log_z = lax.map(of_queries, (q_JBKGTH, rows.query, rows.first, rows.last))
    o_JBKGTH, log_z = (checkpoint_name(x, ATTENTION) for x in (o_JBKGTH, log_z))
    return o_JBKGTH, (q_JBKGTH, k_BKSH, v_BKSH, rows, o_JBKGTH, log_z)


def _backward(pattern: Pattern, kept: tuple[Any, ...], d_o_JBKGTH: Array):
    q_JBKGTH, k_BKSH, v_BKSH, rows, o_JBKGTH, log_z_JBKGT = kept

    def of_queries(d_keys: tuple[Array, Array], block: tuple[Any, ...]):
        q, query, first, last, o, log_z, d_o = block
        # The part of each score's gradient that its row shares.
        shared = jnp.sum(o.astype(jnp.float32) * d_o.astype(jnp.float32), axis=-1)

        def add(at: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = state
            k, v = _at(k_BKSH, at), _at(v_BKSH, at)
            scores = _scores(q, k, _seen(query, rows.key, at, pattern), pattern.soft_cap)
            weights = jnp.exp(scores - log_z[..., None])
            product = partial(jnp.einsum, preferred_element_type=jnp.float32)
            d_weights = product("bkgth,bksh->bkgts", d_o, v)
            d_scores = weights * (d_weights - shared[..., None])
            if pattern.soft_cap is not None:
                # Hidden scores, whose slope this is not, have weight 0.
                flat = jnp.clip(scores / pattern.soft_cap, -1.0, 1.0)
                d_scores = d_scores * (1.0 - flat**2)
            d_scores = d_scores.astype(q.dtype)
            more_k = product("bkgts,bkgth->bksh", d_scores, q)
            more_v = product("bkgts,bkgth->bksh", weights.astype(d_o.dtype), d_o)
            d_k, d_v = (
                lax.dynamic_update_slice_in_dim(total, _at(total, at) + more, at * KEYS, 2)
                for total, more in ((d_k, more_k), (d_v, more_v))
            )
            return d_q + product("bkgts,bksh->bkgth", d_scores, k), d_k, d_v

        start = (jnp.zeros(q.shape, jnp.float32), *d_keys)
        d_q, d_k, d_v = lax.fori_loop(first, last, add, start)
        return (d_k, d_v), d_q.astype(q.dtype)

    none = jnp.zeros(k_BKSH.shape, jnp.float32), jnp.zeros(v_BKSH.shape, jnp.float32)
    blocks = (q_JBKGTH, rows.query, rows.first, rows.last, o_JBKGTH, log_z_JBKGT, d_o_JBKGTH)
    (d_k, d_v), d_q = lax.scan(of_queries, none, blocks)
    return d_q, d_k.astype(k_BKSH.dtype), d_v.astype(v_BKSH.dtype), None


_streamed.defvjp(_forward, _backward)
