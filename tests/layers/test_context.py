"""Dropout is a function of step, layer, site, row and token, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.context import Context, dropout
from lm.ops.attention.pattern import Where

B, T, D, RATE = 6, 10, 64, 0.25
KEY = jax.random.key(3)


def context(rows=None, key=KEY) -> Context:
    segments = jnp.broadcast_to(jnp.where(jnp.arange(T) < 4, 1, 2), (B, T)).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.where(jnp.arange(T) < 4, jnp.arange(T), jnp.arange(T) - 4),
                                 (B, T)).astype(jnp.int32)  # fmt: skip
    rows = jnp.arange(B, dtype=jnp.int32) if rows is None else rows
    where = Where(segments, positions)
    return Context(where, where, rows, {}, key)


@jax.jit
def dropped(x, context):
    return dropout(x, RATE, context, "here")


def test_rows_that_change_places_take_their_bits_with_them():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)
    whole = dropped(x, context())
    order = jnp.asarray([4, 0, 5, 2, 1, 3], jnp.int32)
    np.testing.assert_array_equal(dropped(x[order], context(order)), whole[order])


def test_rows_tokens_layers_steps_and_sites_differ():
    """Any two masks of 64 features agree in all of them with a chance of 1e-13."""
    ones = jnp.ones((B, T, D))
    here = np.asarray(dropped(ones, context()))
    tokens = here.reshape(B * T, D)
    assert len(np.unique(tokens, axis=0)) == B * T
    others = [
        dropped(ones, context().at_layer(1)),
        dropped(ones, context().at_layer(2)),
        dropped(ones, context(key=jax.random.fold_in(KEY, 1))),
        jax.jit(lambda x, c: dropout(x, RATE, c, "there"))(ones, context()),
    ]
    for other in others:
        assert (np.asarray(other) != here).any(-1).all()


def test_the_expectation_is_kept():
    """Over 3,840 draws: the share that falls out within four deviations, and the mean with it."""
    found = np.asarray(dropped(jnp.ones((B, T, D)), context()))
    share = (found == 0).mean()
    assert abs(share - RATE) < 4 * np.sqrt(RATE * (1 - RATE) / found.size)
    np.testing.assert_allclose(found[found != 0], 1 / (1 - RATE), rtol=1e-6)


@pytest.mark.parametrize(("rate", "key"), [(0.0, KEY), (0.5, None)])
def test_nothing_falls_out_without_a_rate_or_a_key(rate, key):
    x = jnp.ones((B, T, D))
    assert dropout(x, rate, context(key=key), "here") is x
