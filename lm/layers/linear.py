"""Products with weights; the one place that decides the shape of their operands."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm.batch import Leaf
from lm.layers.parameter import declare


class Einsum(nn.Module):
    """A weight, applied to the last ``contracted`` dimensions of [B, T, ...], with bias or without.

    The weight has the input's dimensions first, then the output's; ``axes`` names them all.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    bias: bool = False
    flat: bool = True
    """Multiply a plain matrix of tokens: twice as fast on a CPU as [B, T, D].  Not where an axis
    that the compiler handles splits T, which could not be told from B in the result."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, T, *inputs] -> [B, T, *outputs], in the dtype of ``x``."""
        fan_in, fan_out = math.prod(self.inputs), math.prod(self.outputs)
        leaf = Leaf(self.axes, fan_in, fan_out, stacked=False, kind="matrix")
        w = declare(self, "w", self.inputs + self.outputs, leaf).astype(x.dtype)
        leading = x.shape[: x.ndim - len(self.inputs)]
        rows = x.reshape(*((-1,) if self.flat else leading), fan_in)
        y = (rows @ w.reshape(fan_in, fan_out)).reshape(*leading, *self.outputs)
        if self.bias:
            axes = self.axes[len(self.inputs) :]
            named = Leaf(bias_axes(axes), fan_in, fan_out, stacked=False, kind="bias")
            y = y + declare(self, "b", self.outputs, named).astype(x.dtype)
        return y


def bias_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """A bias of the residual stream is replicated like a norm; any other follows its product."""
    return tuple("norm" if axis == "embed" else axis for axis in axes)


@jax.custom_vjp
def head_product(
    x: Float[Array, "*tokens D"], w_VD: Float[Array, "V D"]
) -> Float[Array, "*tokens V"]:
    """Logits in float32 whatever the dtype of the operands; gradients travel in theirs."""
    return jnp.einsum("...d,vd->...v", x, w_VD, preferred_element_type=jnp.float32)


def _head_forward(x: Array, w_VD: Array) -> tuple[Array, tuple[Array, Array]]:
    return head_product(x, w_VD), (x, w_VD)


def _head_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w_VD = saved
    narrow = g.astype(x.dtype)
    flat = narrow.reshape(-1, narrow.shape[-1])
    # The table's own layout, without a transposition after it: a quarter of the head's time.
    return jnp.matmul(narrow, w_VD), jnp.matmul(flat.T, x.reshape(-1, x.shape[-1]))


head_product.defvjp(_head_forward, _head_backward)
