"""Rotary frequencies, plain and stretched as Llama 3.1 does."""

import math

import numpy as np
import pytest

from lm.errors import ConfigError
from lm.layers.position import LlamaScaling, Rope

LLAMA = LlamaScaling(factor=8.0, low=1.0, high=4.0, original_length=8192)


def stretched(frequency: float, s: LlamaScaling) -> float:
    """Appendix of Grattafiori 2024: short waves stay, long ones stretch, between them a blend."""
    wavelength = 2 * math.pi / frequency
    if wavelength < s.original_length / s.high:
        return frequency
    if wavelength > s.original_length / s.low:
        return frequency / s.factor
    smooth = (s.original_length / wavelength - s.low) / (s.high - s.low)
    return (1 - smooth) * frequency / s.factor + smooth * frequency


@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_wavelengths_grow_geometrically(theta):
    found = Rope(theta=theta).frequencies(128)
    np.testing.assert_allclose(found, theta ** (-np.arange(64) / 64), rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_scaling_follows_its_three_ranges(factor):
    scaling = LlamaScaling(factor=factor)
    found = Rope(theta=5e5, scaling=scaling).frequencies(128)
    plain = 5e5 ** (-np.arange(64) / 64)
    expected = [stretched(f, scaling) for f in plain]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    ratios = plain / found
    assert ratios[0] == pytest.approx(1)
    assert ratios[-1] == pytest.approx(factor)
    assert any(1.01 < r < factor - 0.01 for r in ratios)


def test_an_odd_head_width_is_refused():
    with pytest.raises(ConfigError, match="even head_width, found 7"):
        Rope().frequencies(7)
