"""Keys and values of tokens seen before, for generation."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.ops.attention.pattern import Where


class KvCache(NamedTuple):
    """One layer's memory: a slot is a sequence, and position p of it is stored at index p."""

    keys: Float[Array, "B S K H"]
    values: Float[Array, "B S K H"]


def empty(slots: int, length: int, heads: int, head_width: int, dtype: jnp.dtype) -> KvCache:
    """Room for ``length`` positions in each slot."""
    blank = jnp.zeros((slots, length, heads, head_width), dtype)
    return KvCache(blank, blank)


def remember(
    cache: KvCache,
    keys_BTKH: Float[Array, "B T K H"],
    values_BTKH: Float[Array, "B T K H"],
    positions_BT: Int[Array, "B T"],
) -> KvCache:
    """Store what stands at ``positions_BT``; positions past the end are dropped."""
    rows = jnp.arange(positions_BT.shape[0])[:, None]
    return KvCache(
        cache.keys.at[rows, positions_BT].set(keys_BTKH.astype(cache.keys.dtype), mode="drop"),
        cache.values.at[rows, positions_BT].set(
            values_BTKH.astype(cache.values.dtype), mode="drop"
        ),
    )


def where(cache: KvCache) -> Where:
    """Where the stored keys stand.

    Index is position, so a causal mask also hides what was left beyond the newest token: every
    stale entry stands at a later position than any query.
    """
    B, S = cache.keys.shape[:2]
    positions = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    return Where(jnp.ones((B, S), jnp.int32), positions)
