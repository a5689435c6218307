import jax
import numpy as np
import optax
import pytest

from lm.optim.chain import chain


def one_update(leaves, gradient, params, **settings):
    """One step of plain gradient descent at rate 0.5 through the chain."""
    settings = {"decay": 0.0, "decay_tables": False, "clip": None, **settings}
    optimizer = chain(optax.identity(), optax.constant_schedule(0.5), leaves, **settings)
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(gradient, params)


def test_a_step_goes_against_the_gradient(leaves, arrays):
    updates = one_update(leaves, arrays(1), arrays(0))
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.5 * g), updates, arrays(1))


@pytest.mark.parametrize("clip", [0.1, 1e6])
def test_clipping_bounds_the_norm_of_the_whole_and_keeps_its_direction(leaves, arrays, clip):
    gradient = arrays(1)
    updates = one_update(leaves, gradient, arrays(0), clip=clip)
    norm = float(np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient))))
    factor = -0.5 * min(1.0, clip / norm)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, factor * g, 1e-5), updates, gradient)


def test_decay_is_neither_clipped_nor_scaled_by_the_gradient(leaves, arrays):
    params = arrays(0, 100.0)
    updates = one_update(leaves, arrays(1, 0.0), params, decay=0.2, clip=1e-3)
    np.testing.assert_allclose(updates["query"], -0.1 * params["query"], 1e-6)
    assert not np.any(updates["scale"])
