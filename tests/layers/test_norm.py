"""Norms against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.norm import LayerNorm, RmsNorm

RNG = np.random.default_rng(0)
X = (5 + 3 * RNG.normal(size=(2, 3, 16))).astype(np.float32)
SCALE, BIAS = (RNG.normal(size=16).astype(np.float32) for _ in range(2))
X64 = X.astype(np.float64)
CENTRED = X64 - X64.mean(-1, keepdims=True)
LAYER = CENTRED / np.sqrt((CENTRED**2).mean(-1, keepdims=True) + 0.1) * SCALE
RMS = X64 / np.sqrt((X64**2).mean(-1, keepdims=True) + 0.1) * SCALE
CASES = {
    "rms": (RmsNorm(epsilon=0.1), {"scale": SCALE}, RMS),
    "layer": (LayerNorm(epsilon=0.1), {"scale": SCALE, "bias": BIAS}, LAYER + BIAS),
    "layer without bias": (LayerNorm(epsilon=0.1, bias=False), {"scale": SCALE}, LAYER),
}


@pytest.mark.parametrize("case", CASES)
def test_norms_equal_their_formula(case):
    config, params, expected = CASES[case]
    params = jax.tree.map(jnp.asarray, params)
    got = config.build().apply({"params": params}, jnp.asarray(X))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_normalised_in_float32_and_returned_as_it_came(case):
    """Large values whose squares bfloat16 could not add up."""
    config, params, expected = CASES[case]
    params = jax.tree.map(jnp.asarray, params)
    got = config.build().apply({"params": params}, jnp.asarray(X, jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=6e-2)
