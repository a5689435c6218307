"""Rows shared by several devices so that each has the same causal work.

A row of T tokens is cut into ``2 * count`` equal chunks, and shard i holds chunks i and
``2 * count - 1 - i``: an early chunk, whose queries see little, with a late one, whose queries see
much (Llama 3, arXiv:2407.21783, section 3.3.2).  *Shard order* is the row as the shards hold it,
one after the other; *natural order* is the row itself.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from lm.errors import ShardingError


@dataclass(frozen=True)
class Shard:
    """Which part of its rows a device holds."""

    index: Int[Array, ""] | int
    """Which of the shards; may be traced."""
    count: int
    """How many shards a row has."""


def chunk_length(length: int, count: int) -> int:
    """Tokens in one chunk.

    Raises:
        ShardingError: rows that cannot be cut into ``2 * count`` equal chunks.
    """
    if length % (2 * count):
        least = length - length % (2 * count)
        near = f"{least} or {least + 2 * count}" if least else f"{2 * count}"
        raise ShardingError(
            f"attention: rows of {length} tokens cannot be shared {count} ways over the context "
            f"axis: each shard holds two equal chunks. Use a length of {near}."
        )
    return length // (2 * count)


def zigzag(length: int, count: int) -> np.ndarray:
    """Natural index of each token in shard order: ``row[zigzag(T, count)]`` is what shards hold.

    Shard i holds the tokens from ``i * T / count`` on of the row so permuted.

    Raises:
        ShardingError: rows that cannot be cut into ``2 * count`` equal chunks.
    """
    chunks = np.arange(length).reshape(-1, chunk_length(length, count))
    return np.concatenate([chunks[[i, 2 * count - 1 - i]].ravel() for i in range(count)])


def unzigzag(length: int, count: int) -> np.ndarray:
    """Place in shard order of each token of the row: undoes ``zigzag``."""
    return np.argsort(zigzag(length, count))


def natural(x: Shaped[Array, "B S ..."], count: int) -> Shaped[Array, "B S ..."]:
    """Put whole rows that lie in shard order back into natural order, by static slices."""
    if count == 1:
        return x
    chunk = chunk_length(x.shape[1], count)
    # Shard i lies at 2 * i and holds chunk i, then chunk 2 * count - 1 - i.
    places = [2 * i for i in range(count)] + [2 * i + 1 for i in reversed(range(count))]
    return jnp.concatenate([x[:, p * chunk : (p + 1) * chunk] for p in places], axis=1)


def starts(shard: Shard, length: int, block: int) -> Int[Array, " blocks"]:
    """Natural index of the first token of each block of a shard; blocks divide its chunks."""
    chunk = chunk_length(length, shard.count)
    offsets = jnp.arange(0, chunk, block, dtype=jnp.int32)
    index = jnp.asarray(shard.index, jnp.int32)
    return jnp.concatenate(
        [index * chunk + offsets, (2 * shard.count - 1 - index) * chunk + offsets]
    )
