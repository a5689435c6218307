"""The position-wise part of a block."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lm.batch import Params
from lm.errors import ConfigError
from lm.layers.execution import GATE, GATHERED, UP, Execution
from lm.layers.linear import Einsum
from lm.layers.parameter import applied, leaves_of
from lm.layers.pieces import cut, summed
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

    def build(
        self, execution: Execution, placement: Placement, name: str | None = None
    ) -> nn.Module:
        """The module.

        Raises:
            ConfigError: an inner width that cannot be cut into the pieces asked for.
        """
        return _built(self, execution, placement, name)


@dataclass(frozen=True, kw_only=True)
class GatedMlp:
    """Gated MLP (Shazeer 2020, arXiv:2002.05202)."""

    hidden: int
    """Inner width F."""
    activation: Activation = "silu"
    bias: bool = False

    def build(
        self, execution: Execution, placement: Placement, name: str | None = None
    ) -> nn.Module:
        """The module.

        Raises:
            ConfigError: an inner width that cannot be cut into the pieces asked for.
        """
        return _built(self, execution, placement, name)


def _built(
    config: Mlp | GatedMlp, execution: Execution, placement: Placement, name: str | None
) -> nn.Module:
    count, F = execution.mlp_pieces, config.hidden
    if count == 1:
        return MlpModule(config, placement, name=name)
    if F % count:
        raise ConfigError(
            f"execution.mlp_pieces: an MLP of inner width {F} cannot be cut into {count} equal "
            f"pieces. Choose from: {', '.join(str(n) for n in range(1, 33) if F % n == 0)}."
        )
    return PiecedMlpModule(config, placement, count, name=name)


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


class PiecedMlpModule(nn.Module):
    """Either MLP as a sum of narrower ones; it is given its parameters as they are stored."""

    config: Mlp | GatedMlp
    placement: Placement
    count: int

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The residual update of each token."""
        leaves = leaves_of(MlpModule(self.config, self.placement, parent=None), x_BTD)
        narrow = replace(self.config, hidden=self.config.hidden // self.count)
        module = MlpModule(narrow, self.placement, parent=None)
        stacked = cut(self.variables["params"], leaves, "mlp", self.count)
        pieces = [jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(self.count)]

        def whole(stored: Params) -> Params:
            return checkpoint_name(self.placement.gather(stored, leaves), GATHERED)

        return summed(partial(applied, module), whole, pieces, x_BTD)
