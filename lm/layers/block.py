"""A transformer block: a mixer and an MLP on a residual stream."""

from dataclasses import dataclass, field
from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from lm.errors import ConfigError
from lm.layers.attention import Attention
from lm.layers.cache import KvCache
from lm.layers.context import Context, dropout
from lm.layers.execution import Execution
from lm.layers.mlp import GatedMlp, Mlp
from lm.layers.norm import Norm, RmsNorm
from lm.layers.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Block:
    """Norms before the parts (Xiong 2020, arXiv:2002.04745), after them, or both (Gemma 2)."""

    mixer: Attention
    mlp: Mlp | GatedMlp
    pre_norm: Norm | None = field(default_factory=RmsNorm)
    post_norm: Norm | None = None
    residual: Literal["sequential", "parallel"] = "sequential"
    """Whether the MLP reads what the mixer added, or what the mixer read (GPT-J)."""
    dropout: float = 0.0
    """Share of each part's features dropped in training."""

    def __post_init__(self) -> None:
        """Dropout is a share.

        Raises:
            ConfigError: a share outside [0, 1).
        """
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"block: dropout {self.dropout} is not in [0, 1).")

    def build(
        self, execution: Execution, placement: Placement, name: str | None = None
    ) -> "BlockModule":
        """The module."""
        return BlockModule(self, execution, placement, name=name)


class BlockModule(nn.Module):
    """Runs the parts in order."""

    config: Block
    execution: Execution
    placement: Placement

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], context: Context, cache: KvCache | None = None
    ) -> tuple[Float[Array, "B T D"], KvCache | None]:
        """The stream after the block, and the mixer's cache."""
        c, constrain = self.config, self.placement.constrain

        def before(x: Array, name: str) -> Array:
            x = x if c.pre_norm is None else c.pre_norm.build(f"{name}_norm")(x)
            return constrain(x, ("batch", "position", "stream"))

        def after(y: Array, name: str) -> Array:
            y = constrain(y, ("batch", "sequence", "stream"))
            y = y if c.post_norm is None else c.post_norm.build(f"{name}_post_norm")(y)
            return dropout(y, c.dropout, context, "/".join((*self.path, name)))

        mixer = c.mixer.build(self.execution, self.placement, name="mixer")
        mlp = c.mlp.build(self.execution, self.placement, name="mlp")
        mixed, cache = mixer(before(x_BTD, "mixer"), context, cache)
        if c.residual == "parallel":
            x_BTD = x_BTD + after(mixed, "mixer") + after(mlp(before(x_BTD, "mlp")), "mlp")
        else:
            x_BTD = x_BTD + after(mixed, "mixer")
            x_BTD = x_BTD + after(mlp(before(x_BTD, "mlp")), "mlp")
        return x_BTD, cache
