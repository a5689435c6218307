"""Normalisation over the last dimension, computed in float32; scales are replicated."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lm.batch import Leaf
from lm.layers.parameter import declare


@dataclass(frozen=True, kw_only=True)
class RmsNorm:
    """Root-mean-square norm (Zhang 2019, arXiv:1910.07467)."""

    epsilon: float = 1e-5

    def build(self, name: str | None = None) -> "NormModule":
        """The module."""
        return NormModule(self, name=name)


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """Layer norm (Ba 2016, arXiv:1607.06450) with scale, and bias unless told otherwise."""

    epsilon: float = 1e-5
    bias: bool = True

    def build(self, name: str | None = None) -> "NormModule":
        """The module."""
        return NormModule(self, name=name)


Norm = RmsNorm | LayerNorm


class NormModule(nn.Module):
    """Either norm; they differ in whether the mean is taken off."""

    config: Norm

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The same shape and dtype, each vector normalised."""
        D = x.shape[-1]
        exact = x.astype(jnp.float32)
        if isinstance(self.config, LayerNorm):
            exact = exact - exact.mean(-1, keepdims=True)
        exact = exact * lax.rsqrt((exact**2).mean(-1, keepdims=True) + self.config.epsilon)
        leaf = Leaf(("norm",), 1, D, stacked=False, kind="norm")
        exact = exact * declare(self, "scale", (D,), leaf).astype(jnp.float32)
        if isinstance(self.config, LayerNorm) and self.config.bias:
            named = Leaf(("norm",), 1, D, stacked=False, kind="bias")
            exact = exact + declare(self, "bias", (D,), named).astype(jnp.float32)
        return exact.astype(x.dtype)
