"""Positions: rotary frequencies, and a learned table."""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm.batch import Leaf
from lm.errors import ConfigError
from lm.layers.parameter import declare


@dataclass(frozen=True, kw_only=True)
class LlamaScaling:
    """The stretched frequencies of Llama 3.1 (Grattafiori 2024, arXiv:2407.21783)."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su 2021, arXiv:2104.09864)."""

    theta: float = 10_000.0
    """Base of the wavelengths."""
    scaling: LlamaScaling | None = None

    def frequencies(self, head_width: int) -> np.ndarray:
        """Radians a position for each of the H/2 pairs of features; float32.

        Rounded step by step as transformers does: at position 2,048 one unit in the last place
        of a frequency moves logits by more than 1e-4.
        """
        if head_width % 2:
            raise ConfigError(f"rotary positions need an even head_width, found {head_width}.")
        one = np.float32
        exponents = np.arange(0, head_width, 2, dtype=np.float32) / one(head_width)
        plain = one(1) / (self.theta ** exponents.astype(np.float64)).astype(np.float32)
        if self.scaling is None:
            return plain
        s = self.scaling
        wavelengths = one(2 * math.pi) / plain
        smooth = (one(s.original_length) / wavelengths - one(s.low)) / one(s.high - s.low)
        smooth = np.clip(smooth, one(0), one(1))
        return (one(1) - smooth) * plain / one(s.factor) + smooth * plain


@dataclass(frozen=True, kw_only=True)
class LearnedPositions:
    """A learned vector for each position, added to the embedding (as in GPT-2)."""

    length: int
    """Positions that the table has."""

    def build(self, width: int, name: str | None = None) -> "LearnedPositionsModule":
        """The module."""
        return LearnedPositionsModule(self, width, name=name)


class LearnedPositionsModule(nn.Module):
    """Looks positions up."""

    config: LearnedPositions
    width: int

    @nn.compact
    def __call__(self, positions_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The vector of each position."""
        shape = (self.config.length, self.width)
        leaf = Leaf(("length", "table"), 1, self.width, stacked=False, kind="position")
        return jnp.take(declare(self, "table", shape, leaf), positions_BT, axis=0)
