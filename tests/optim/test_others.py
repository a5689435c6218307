"""Lion, Adafactor and Muon: what each promises beyond AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.batch import Leaf
from lm.config import from_plain, to_plain
from lm.errors import ConfigError
from lm.optim.adafactor import Adafactor
from lm.optim.adamw import AdamW
from lm.optim.lion import Lion
from lm.optim.muon import Muon, matrix_dimensions
from lm.optim.schedule import Constant, Cosine

SCHEDULE = Constant(peak=0.1)


def one_update(config, leaves, gradient, params):
    optimizer = config.build(3, leaves)
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(gradient, params)


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


@pytest.mark.parametrize("kind", [AdamW, Lion, Adafactor, Muon])
def test_configs_survive_json(kind):
    config = kind(schedule=Cosine(peak=1e-3, warmup=5), decay=0.2, clip=None)
    assert from_plain(kind, to_plain(config)) == config


@pytest.mark.parametrize("kind", [AdamW, Lion, Adafactor, Muon])
def test_each_learns_a_least_squares_problem(kind):
    rng = np.random.default_rng(0)
    leaves = {"w": Leaf(("embed", "mlp"), 8, 4, False, "matrix")}
    x, truth = rng.normal(size=(64, 8)), rng.normal(size=(8, 4))
    x, y = jnp.float32(x), jnp.float32(x @ truth)
    rate = {AdamW: 0.05, Lion: 0.02, Adafactor: 0.1, Muon: 0.1}[kind]
    config = kind(schedule=Cosine(peak=rate), decay=0.0)
    optimizer = config.build(200, leaves)
    params = {"w": jnp.full((8, 4), 0.1)}

    def loss(params):
        return jnp.mean((x @ params["w"] - y) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before, state = float(loss(params)), jax.jit(optimizer.init)(params)
    for _ in range(200):
        params, state = step(params, state)
    assert float(loss(params)) < 0.02 * before


def test_lion_moves_every_weight_by_its_rate(leaves, arrays):
    updates = one_update(Lion(schedule=SCHEDULE, decay=0.0), leaves, arrays(1), arrays(0))
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.1 * np.sign(g), 1e-6), updates, arrays(1)
    )


def test_adafactor_equals_optax_without_decay(leaves, arrays):
    params, gradient = as_jax(arrays(0)), as_jax(arrays(1))
    theirs = optax.adafactor(0.1)
    expected = jax.jit(lambda g, p: theirs.update(g, theirs.init(p), p)[0])(gradient, params)
    updates = one_update(Adafactor(schedule=SCHEDULE), leaves, gradient, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), updates, expected)


def test_muon_treats_each_layer_as_a_matrix_of_its_own(leaves, arrays):
    """A stacked matrix is updated as its layers would be alone; scaling one changes no other."""
    config = Muon(schedule=SCHEDULE, decay=0.0, clip=None)
    params, gradient = as_jax(arrays(0)), arrays(1)
    gradient["query"][1] *= 100.0
    stacked = one_update(config, leaves, as_jax(gradient), params)["query"]
    alone = Leaf(("embed", "heads", "head"), 4, 4, False, "matrix")
    for layer in range(3):
        single = one_update(
            config,
            {"query": alone},
            {"query": jnp.asarray(gradient["query"][layer])},
            {"query": params["query"][layer]},
        )["query"]
        np.testing.assert_allclose(stacked[layer], single, rtol=1e-4, atol=1e-6)


def test_muon_updates_are_near_orthogonal_and_of_adams_size(leaves, arrays):
    config = Muon(schedule=SCHEDULE, decay=0.0, clip=None)
    update = one_update(config, leaves, as_jax(arrays(1)), as_jax(arrays(0)))["head"]["w"]
    singular = np.linalg.svd(np.asarray(update) / (0.1 * 0.2 * np.sqrt(7)), compute_uv=False)
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_muon_treats_the_rest_as_adam(leaves, arrays):
    config = Muon(schedule=SCHEDULE, decay=0.0, clip=None)
    adam = AdamW(schedule=SCHEDULE, decay=0.0, clip=None)
    ours = one_update(config, leaves, as_jax(arrays(1)), as_jax(arrays(0)))
    theirs = one_update(adam, leaves, as_jax(arrays(1)), as_jax(arrays(0)))
    for name in ("table", "places", "scale"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)
    np.testing.assert_allclose(ours["head"]["bias"], theirs["head"]["bias"], rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "shape", "fan_in", "split"),
    [
        (("embed", "mlp"), (8, 32), 8, ((0,), (1,))),
        (("layers", "heads", "head", "embed"), (3, 2, 4, 8), 8, ((1, 2), (3,))),
        (("layers", "embed", "kv_heads", "head"), (3, 8, 2, 4), 8, ((1,), (2, 3))),
        (("layers", "expert", "embed", "mlp"), (3, 4, 8, 32), 8, ((2,), (3,))),
    ],
)
def test_matrix_dimensions_leave_layers_and_experts_out(axes, shape, fan_in, split):
    leaf = Leaf(axes, fan_in, 1, axes[0] == "layers", "matrix")
    assert tuple(matrix_dimensions(leaf, jnp.zeros(shape))) == split


def test_muon_refuses_what_is_no_matrix():
    leaf = Leaf(("embed", "mlp"), 5, 32, False, "matrix")
    with pytest.raises(ConfigError, match="fan-in 5"):
        matrix_dimensions(leaf, jnp.zeros((8, 32)))
