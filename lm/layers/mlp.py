"""The position-wise part of a block."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lm.layers.execution import GATE, UP
from lm.layers.linear import Einsum
from lm.layers.placement import Placement

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu_squared"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jax.nn.relu(x) ** 2,
}


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Two products with an activation between (Vaswani 2017, arXiv:1706.03762)."""

    hidden: int
    """Inner width F."""
    activation: Activation = "gelu_tanh"
    bias: bool = False

    def build(self, placement: Placement, name: str | None = None) -> nn.Module:
        """The module."""
        return MlpModule(self, placement, name=name)


@dataclass(frozen=True, kw_only=True)
class GatedMlp:
    """Gated MLP (Shazeer 2020, arXiv:2002.05202)."""

    hidden: int
    """Inner width F."""
    activation: Activation = "silu"
    bias: bool = False

    def build(self, placement: Placement, name: str | None = None) -> nn.Module:
        """The module."""
        return MlpModule(self, placement, name=name)


class MlpModule(nn.Module):
    """Either MLP; the gated one has a third product."""

    config: Mlp | GatedMlp
    placement: Placement

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The residual update of each token."""
        D, F, bias = x_BTD.shape[-1], self.config.hidden, self.config.bias
        flat = self.placement.flat
        act = ACTIVATIONS[self.config.activation]
        inward = partial(Einsum, (D,), (F,), ("embed", "mlp"), bias, flat)
        up_BTF = checkpoint_name(inward(name="up")(x_BTD), UP)
        if isinstance(self.config, GatedMlp):
            gate_BTF = checkpoint_name(inward(name="gate")(x_BTD), GATE)
            hidden_BTF = act(gate_BTF) * up_BTF
        else:
            hidden_BTF = act(up_BTF)
        hidden_BTF = self.placement.constrain(hidden_BTF, ("batch", "position", "mlp"))
        return Einsum((F,), (D,), ("mlp", "embed"), bias, flat, name="down")(hidden_BTF)
