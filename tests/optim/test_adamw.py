"""AdamW against its formula in numpy, and against PyTorch's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.errors import ConfigError
from lm.optim.adamw import AdamW
from lm.optim.schedule import Constant, Cosine

STEPS = 5
CONFIG = AdamW(schedule=Cosine(peak=0.05, warmup=2), b2=0.9, decay=0.3, clip=1.5)
SCALES = [0.01, 1.0, 3.0, 0.05, 10.0]  # some gradients are clipped, some are not


def train(config: AdamW, leaves, params, gradients) -> list[Any]:
    """The parameters after each update."""
    optimizer = config.build(len(gradients), leaves)
    params, state, history = jax.tree.map(jnp.asarray, params), None, []
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.tree.map(np.asarray, params))
    return history


def by_hand(config: AdamW, params, gradients, decays) -> list[list[np.ndarray]]:
    """Loshchilov 2017, algorithm 2, in float64 over lists of leaves."""
    params = [np.float64(p) for p in params]
    m, v, history = [0.0] * len(params), [0.0] * len(params), []
    rates = config.learning_rate(len(gradients))
    for n, gradient in enumerate(gradients):
        lr = float(rates(n))
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in gradient))
        factor = 1.0 if config.clip is None else min(1.0, config.clip / norm)
        for i, g in enumerate(gradient):
            g = factor * np.float64(g)
            m[i] = config.b1 * m[i] + (1 - config.b1) * g
            v[i] = config.b2 * v[i] + (1 - config.b2) * g**2
            m_hat, v_hat = m[i] / (1 - config.b1 ** (n + 1)), v[i] / (1 - config.b2 ** (n + 1))
            step = m_hat / (np.sqrt(v_hat) + config.eps) + config.decay * decays[i] * params[i]
            params[i] = params[i] - lr * step
        history.append(list(params))
    return history


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, clip=None),
        dataclasses.replace(CONFIG, decay=0.0),
        dataclasses.replace(CONFIG, decay_tables=True),
        dataclasses.replace(CONFIG, eps=0.1, b1=0.0),
    ],
    ids=["all", "unclipped", "no decay", "tables decay", "large eps"],
)
def test_five_updates_equal_the_formula(config, leaves, arrays):
    params, gradients = arrays(0), [arrays(1 + n, s) for n, s in enumerate(SCALES)]
    kinds = {"matrix", "table"} if config.decay_tables else {"matrix"}
    decays = [leaf.kind in kinds for leaf in jax.tree.leaves(leaves)]
    ours = train(config, leaves, params, gradients)
    theirs = by_hand(
        config, jax.tree.leaves(params), [jax.tree.leaves(g) for g in gradients], decays
    )
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(jax.tree.leaves(a), b, strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


def test_without_a_gradient_only_matrices_shrink(leaves, arrays):
    params = arrays(0)
    after = train(CONFIG, leaves, params, [jax.tree.map(np.zeros_like, params)] * 2)[0]
    shrunk = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, after)
    assert shrunk == jax.tree.map(lambda leaf: leaf.kind == "matrix", leaves)
    rate = float(CONFIG.learning_rate(2)(0))
    np.testing.assert_allclose(after["head"]["w"], params["head"]["w"] * (1 - 0.3 * rate), 1e-6)


def test_state_dtype_is_that_of_the_first_moment(leaves, arrays):
    optimizer = dataclasses.replace(CONFIG, state_dtype="bfloat16").build(STEPS, leaves)
    state = optimizer.init(jax.tree.map(jnp.asarray, arrays(0)))
    for _ in range(2):  # also after an update
        mu, nu = optax.tree_utils.tree_get(state, "mu"), optax.tree_utils.tree_get(state, "nu")
        assert {x.dtype for x in jax.tree.leaves(mu)} == {jnp.dtype("bfloat16")}
        assert {x.dtype for x in jax.tree.leaves(nu)} == {jnp.dtype("float32")}
        _, state = jax.jit(optimizer.update)(arrays(1), state, arrays(0))


def test_the_rate_reported_is_the_rate_applied(leaves, arrays):
    """With b1 = b2 = 0 and a constant gradient sign an update has the size of its rate."""
    config = dataclasses.replace(CONFIG, b1=0.0, b2=0.0, decay=0.0, clip=None, eps=1e-12)
    history = train(config, leaves, arrays(0), [arrays(1)] * STEPS)
    moved = [
        np.abs(b["scale"] - a["scale"]).mean()
        for a, b in zip([arrays(0), *history], history, strict=False)
    ]
    rates = [float(config.learning_rate(STEPS)(n)) for n in range(STEPS)]
    np.testing.assert_allclose(moved, rates, rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("b1", 1.0), ("b2", -0.1), ("eps", 0.0), ("decay", -0.1), ("clip", 0.0)],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        AdamW(schedule=Constant(peak=1e-3), **{field: value})


@pytest.mark.parity
def test_equals_pytorch(leaves, arrays):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(CONFIG, schedule=Constant(peak=0.03), clip=1.5)
    params, gradients = arrays(0), [arrays(1 + n, s) for n, s in enumerate(SCALES)]
    flat = [torch.nn.Parameter(torch.tensor(p)) for p in jax.tree.leaves(params)]
    kinds = [leaf.kind for leaf in jax.tree.leaves(leaves)]
    groups = [
        {
            "params": [p for p, k in zip(flat, kinds, strict=True) if (k == "matrix") == matrix],
            "weight_decay": 0.3 * matrix,
        }
        for matrix in (True, False)
    ]
    theirs = torch.optim.AdamW(groups, lr=0.03, betas=(config.b1, config.b2), eps=config.eps)
    ours = train(config, leaves, params, gradients)
    for gradient, after in zip(gradients, ours, strict=True):
        for p, g in zip(flat, jax.tree.leaves(gradient), strict=True):
            p.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_(flat, 1.5)
        theirs.step()
        for p, x in zip(flat, jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(x, p.detach().numpy(), rtol=2e-5, atol=2e-6)
