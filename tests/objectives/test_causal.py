"""Targets stay within their document, and the loss is the formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Output, Tokens
from lm.errors import ConfigError
from lm.objectives.causal import CausalLm

RNG = np.random.default_rng(0)
IDS = np.asarray([5, 6, 7, 8, 9, 0, 0], np.int64)
SEGMENTS = np.asarray([1, 1, 2, 2, 2, 0, 0], np.int64)


def test_a_document_never_predicts_the_next_one_nor_padding():
    found = CausalLm().prepare(IDS, SEGMENTS, RNG)
    assert found.ids.tolist() == [5, 6, 7, 8, 9, 0]
    assert found.targets.tolist() == [6, 7, 8, 9, 0, 0]
    assert found.segments.tolist() == [1, 1, 2, 2, 2, 0]
    assert found.weights.tolist() == [1, 0, 1, 1, 0, 0]


def test_rows_prepared_together_are_those_prepared_alone():
    ids, segments = RNG.integers(0, 9, (4, 8)), np.sort(RNG.integers(0, 3, (4, 8)), -1)
    together = CausalLm().prepare_rows(ids, segments)
    for i in range(4):
        alone = CausalLm().prepare(ids[i], segments[i], RNG)
        for a, b in zip(alone[:4], together[:4], strict=True):
            np.testing.assert_array_equal(a, b[i])


def test_the_loss_is_summed_nll_and_z_loss():
    hidden = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    w = RNG.normal(size=(4, 7)).astype(np.float32)
    targets = RNG.integers(0, 7, (2, 3)).astype(np.int32)
    weights = RNG.random((2, 3)).astype(np.float32)
    blank = np.zeros((2, 3), np.int32)
    batch = Batch(Tokens(blank, blank, blank), jnp.asarray(targets), jnp.asarray(weights), blank[0])
    scores = hidden.astype(np.float64) @ w
    log_z = np.log(np.exp(scores).sum(-1))
    nll = log_z - np.take_along_axis(scores, targets[..., None].astype(int), -1)[..., 0]
    output = Output(jnp.asarray(hidden), {})
    found = CausalLm(z_loss=0.5).loss(lambda x: x @ w, output, batch)
    assert float(found.metrics["nll"]) == pytest.approx((nll * weights).sum(), rel=1e-5)
    assert float(found.total) == pytest.approx(((nll + 0.5 * log_z**2) * weights).sum(), rel=1e-5)
    assert float(found.weight) == pytest.approx(weights.sum())


def test_a_negative_z_loss_is_refused():
    with pytest.raises(ConfigError, match=r"z_loss -0\.1 is negative"):
        CausalLm(z_loss=-0.1)
