"""Rows shared zigzag: the order, the balance, and that shards put together are the row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ShardingError
from lm.ops.attention import splash, streamed
from lm.ops.attention.attend import Target, attend
from lm.ops.attention.pattern import Pattern, Where
from lm.ops.attention.zigzag import Shard, natural, starts, unzigzag, zigzag

INTERPRETED = Target("splash", interpret=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks to each chunk."""
    monkeypatch.setattr(streamed, "QUERIES", 4)
    monkeypatch.setattr(streamed, "KEYS", 12)
    monkeypatch.setattr(splash, "RESIDENT", 128)
    monkeypatch.setattr(splash, "STREAMED", 128)
    splash._kernel.cache_clear()
    yield
    splash._kernel.cache_clear()


def test_each_shard_holds_an_early_and_a_late_chunk():
    assert zigzag(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert zigzag(12, 3).tolist() == [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_inverse_and_the_slices_restore_the_row(count):
    order = zigzag(48, count)
    np.testing.assert_array_equal(order[unzigzag(48, count)], np.arange(48))
    row = jnp.asarray(order)[None]
    np.testing.assert_array_equal(natural(row, count)[0], np.arange(48))


def test_block_starts_are_natural_indices():
    shards = zigzag(48, 4).reshape(4, -1)
    for i in range(4):
        np.testing.assert_array_equal(starts(Shard(jnp.int32(i), 4), 48, 3), shards[i][::3])


@pytest.mark.parametrize("count", [2, 4, 8])
def test_shards_see_equally_many_pairs(count):
    """Causal work, in pairs of query and key, differs by less than a percent."""
    pairs = (zigzag(1024, count) + 1).reshape(count, -1).sum(axis=1)
    assert pairs.max() / pairs.min() < 1.01
    assert pairs.sum() == 1024 * 1025 // 2


@pytest.mark.parametrize("count", [2, 4])
def test_splash_visits_equally_many_blocks_in_each_shard(count):
    """Tables of the kernel: as many blocks for each shard, and few more than the diagonal needs."""
    blocks = 4 * count
    kernel = splash._kernel(128 * blocks, count, (0, None), None, False)
    needed = blocks * (blocks + 1) // 2
    for table in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
        visited = (table.block_mask.reshape(count, -1) > 0).sum(axis=1)
        assert len(set(visited.tolist())) == 1
        assert visited.sum() == needed


@pytest.mark.parametrize("count", [1, 2])
def test_splash_visits_no_block_beyond_the_window(count):
    """A window of one block reaches over two blocks of keys."""
    kernel = splash._kernel(1024, count, (0, 127), None, False)
    for table in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
        assert (table.block_mask > 0).sum() == 2 * 8 - 1


def test_rows_that_cannot_be_shared_are_refused_with_lengths_that_can():
    with pytest.raises(ShardingError, match=r"100 tokens cannot be shared 8 ways.*96 or 112"):
        zigzag(100, 8)


@pytest.mark.parametrize(
    ("kernel", "length", "count", "pattern"),
    [
        ("whole", 48, 4, Pattern(window=9)),
        ("blocked", 48, 2, Pattern()),
        ("blocked", 48, 4, Pattern(soft_cap=2.0)),
        ("blocked", 40, 4, Pattern(window=9)),
        ("blocked", 48, 2, Pattern(causal=False, window=5)),
        (INTERPRETED, 512, 2, Pattern()),
        (INTERPRETED, 1024, 4, Pattern(window=150)),
    ],
)
def test_shards_put_together_equal_the_row(kernel, length, count, pattern):
    """Outputs and gradients, the shard's number traced, documents across chunks and padding."""
    rng = np.random.default_rng(0)
    q, k, v, d_out = (
        rng.normal(size=(2, length, heads, 4)).astype(np.float32) for heads in (2, 1, 1, 2)
    )
    index = np.arange(length)
    cut, end = length // 3, length - length // 5
    segments = np.stack([1 + (index >= cut), np.where(index < end, 1, 0)])
    positions = np.stack([index - cut * (index >= cut), index - end * (index >= end)])
    row = Where(*(jnp.asarray(x, jnp.int32) for x in (segments, positions)))
    order = zigzag(length, count)

    @jax.jit
    def whole(q, k, v, d_out):
        out, pull = jax.vjp(lambda *x: attend(*x, row, row, pattern, "whole"), q, k, v)
        return out, *pull(d_out)

    @jax.jit
    def of_shard(index, q, k, v, d_out):
        q, k, v, d_out, *held = (x[:, order] for x in (q, k, v, d_out, *row))
        held = Where(*held)
        part = length // count
        mine = [jax.lax.dynamic_slice_in_dim(x, index * part, part, 1) for x in (q, *held, d_out)]

        def shared(q, k, v):
            query = Where(*mine[1:3])
            return attend(q, k, v, query, held, pattern, kernel, Shard(index, count))

        out, pull = jax.vjp(shared, mine[0], k, v)
        return out, *pull(mine[3])

    found = [jax.device_get(of_shard(np.int32(i), q, k, v, d_out)) for i in range(count)]
    joined = [np.concatenate([f[i] for f in found], axis=1) for i in (0, 1)]
    joined += [sum(f[i] for f in found) for i in (2, 3)]
    back = unzigzag(length, count)
    for got, want in zip(joined, whole(q, k, v, d_out), strict=True):
        np.testing.assert_allclose(got[:, back], want, rtol=1e-4, atol=5e-6)
