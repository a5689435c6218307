"""AdamW (Loshchilov 2017, arXiv:1711.05101)."""

from dataclasses import dataclass
from typing import Literal

import optax

from lm.errors import ConfigError
from lm.optim.chain import chain, check_decay_and_clip, check_rates
from lm.optim.optimizer import Leaves
from lm.optim.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay and clipping by the global norm."""

    schedule: Schedule
    """Learning rate over the run."""
    b1: float = 0.9
    """Averaging rate of the gradient."""
    b2: float = 0.95
    """Averaging rate of its square."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    decay: float = 0.1
    """Weight decay of matrices, multiplied by the learning rate."""
    decay_tables: bool = False
    """Whether token tables decay too; norms, biases and positions never do."""
    clip: float | None = 1.0
    """Largest norm of the whole gradient; None: never clipped."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the first moment.  The second stays in the parameters' float32: its small
    increments would be lost in bfloat16."""

    def __post_init__(self):
        check_rates(b1=self.b1, b2=self.b2)
        check_decay_and_clip(self.decay, self.clip)
        if not self.eps > 0:
            raise ConfigError(f"eps={self.eps}: must be positive; it keeps a division finite.")

    def build(self, total_steps: int, leaves: Leaves) -> optax.GradientTransformation:
        """The transformation for a run of ``total_steps`` updates of parameters like ``leaves``.

        Raises:
            ConfigError: the schedule does not fit the run.
        """
        direction = optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.state_dtype)
        return chain(
            direction,
            self.learning_rate(total_steps),
            leaves,
            decay=self.decay,
            decay_tables=self.decay_tables,
            clip=self.clip,
        )

    def learning_rate(self, total_steps: int) -> optax.Schedule:
        """The learning rate by the number of the update, counted from 0."""
        return self.schedule.build(total_steps)
