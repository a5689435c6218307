"""Chunked cross entropy is the plain one: the same loss and gradients, never all logits at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Pieced
from lm.ops import cross_entropy
from lm.ops.cross_entropy import summed_cross_entropy, token_cross_entropy

B, T, D, V = 3, 7, 5, 40
ROOM = {1: 1.0, 2: 11 * V * 4 / 2**30, 7: 3 * V * 4 / 2**30}
"""Pieces -> the GiB of logits that make 21 tokens as many; the second of two has a token less."""


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    w, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((D, V), (V,)))
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    weights = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) > 0.3), jnp.float32)
    return hidden, (w, b), targets, weights


def logits_of(params):
    """A head of two parameters, one of them through a nonlinearity."""
    w, b = params
    return lambda x: x @ w + jnp.tanh(b)[(None,) * (x.ndim - 1)]


def plain(params, hidden, targets, weights, z_loss):
    scores = logits_of(params)(hidden)
    log_p = jax.nn.log_softmax(scores)
    nll = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return ((nll + z_loss * jax.nn.logsumexp(scores, -1) ** 2) * weights).sum()


@pytest.mark.parametrize("pieces", ROOM)
def test_loss_and_every_gradient_equal_those_of_the_plain_formula(given, pieces, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_GIB", ROOM[pieces])
    hidden, params, targets, weights = given
    assert len(cross_entropy._pieces(logits_of(params), hidden.reshape(-1, D), targets.reshape(-1),
                                     weights.reshape(-1))[0]) == pieces  # fmt: skip

    def chunked(params, hidden):
        return 3.0 * summed_cross_entropy(logits_of(params), hidden, targets, weights, 0.1).total

    def direct(params, hidden):
        return 3.0 * plain(params, hidden, targets, weights, 0.1)

    got = jax.jit(jax.value_and_grad(chunked, (0, 1)))(params, hidden)
    want = jax.jit(jax.value_and_grad(direct, (0, 1)))(params, hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("pieces", [2, 8])
def test_pieces_of_the_vocabulary_give_the_plain_loss_and_gradients(given, pieces):
    hidden, params, targets, weights = given
    size = V // pieces

    def by_vocabulary(params, hidden):
        w, b = params
        cut = {"w": jnp.moveaxis(w.reshape(D, size, pieces), 2, 0), "b": b.reshape(size, pieces).T}
        ids = lambda index: jnp.arange(size) * pieces + index  # noqa: E731
        logits = Pieced(logits_of(params), cut, lambda p, x: logits_of((p["w"], p["b"]))(x), ids)
        sums = summed_cross_entropy(logits, hidden, targets, weights, 0.1)
        return 3.0 * sums.total, (sums.nll, sums.correct)

    def direct(params, hidden):
        loss = 3.0 * plain(params, hidden, targets, weights, 0.1)
        whole = summed_cross_entropy(logits_of(params), hidden, targets, weights, 0.1)
        return loss, (whole.nll, whole.correct)

    got = jax.jit(jax.value_and_grad(by_vocabulary, (0, 1), has_aux=True))(params, hidden)
    want = jax.jit(jax.value_and_grad(direct, (0, 1), has_aux=True))(params, hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)


def test_tokens_of_weight_zero_count_nothing_and_have_no_gradient(given, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_GIB", ROOM[7])
    hidden, params, targets, weights = given

    def total(hidden, targets):
        return summed_cross_entropy(logits_of(params), hidden, targets, weights, 0.1).total

    both = jax.jit(jax.value_and_grad(total))
    value, gradient = both(hidden, targets)
    silent = np.asarray(weights) == 0
    assert silent.any()
    assert not np.asarray(gradient)[silent].any()
    assert np.abs(np.asarray(gradient)[~silent]).max(-1).min() > 0
    assert both(hidden, jnp.where(silent, 0, targets))[0] == value


@pytest.mark.parametrize("pieces", ROOM)
def test_sums_of_nll_and_correct_are_those_of_the_tokens(given, pieces, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_GIB", ROOM[pieces])
    hidden, params, targets, weights = given
    scores = np.asarray(jax.jit(lambda p, x: logits_of(p)(x))(params, hidden), np.float64)
    # Some are right, some are not.
    targets = np.where(np.arange(T)[None, :] < 4, scores.argmax(-1), np.asarray(targets))
    log_z = np.log(np.exp(scores).sum(-1))
    nll = log_z - np.take_along_axis(scores, targets[..., None], -1)[..., 0]
    right = scores.argmax(-1) == targets
    assert 0 < right.mean() < 1

    @jax.jit
    def found(params, hidden, targets):
        sums = summed_cross_entropy(logits_of(params), hidden, targets, weights, 0.1)
        return sums, token_cross_entropy(logits_of(params), hidden, targets)

    sums, (each, hits) = found(params, hidden, jnp.asarray(targets, jnp.int32))
    np.testing.assert_allclose(sums.nll, (nll * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.correct, (right * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(each, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(hits, right)


@pytest.mark.parametrize("pieces", [1, 7])
def test_no_array_of_all_logits_is_compiled_where_the_tokens_are_cut(given, pieces, monkeypatch):
    """One piece holds them all, which shows that the search finds them."""
    monkeypatch.setattr(cross_entropy, "LOGITS_GIB", ROOM[pieces])
    hidden, params, targets, weights = given

    def both(params, hidden):
        total = summed_cross_entropy(logits_of(params), hidden, targets, weights).total
        return total, token_cross_entropy(logits_of(params), hidden, targets)

    function = jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True))
    text = function.lower(params, hidden).compile().as_text()
    sizes = [
        int(np.prod([int(n) for n in shape.split(",")]))
        for shape in re.findall(r"f32\[([\d,]+)\]", text)
    ]
    assert (max(sizes) >= B * T * V) == (pieces == 1)


def test_logits_of_bfloat16_are_summed_in_float32(given):
    hidden, params, targets, weights = given
    narrow = lambda x: logits_of(params)(x).astype(jnp.bfloat16)  # noqa: E731
    sums = jax.jit(lambda x: summed_cross_entropy(narrow, x, targets, weights))(hidden)
    assert sums.total.dtype == jnp.float32
    exact = jax.jit(plain)(params, hidden, targets, weights, 0.0)
    np.testing.assert_allclose(sums.total, exact, rtol=1e-2)
