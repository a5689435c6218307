"""Lion (Chen 2023, arXiv:2302.06675)."""

from dataclasses import dataclass
from typing import Literal

import optax

from lm.optim.chain import chain, check_decay_and_clip, check_rates
from lm.optim.optimizer import Leaves
from lm.optim.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Lion:
    """The sign of an averaged gradient: one moment to keep instead of Adam's two.

    Its learning rate is commonly 3 to 10 times smaller than AdamW's and its decay as much larger.
    """

    schedule: Schedule
    """Learning rate over the run."""
    b1: float = 0.9
    """Averaging rate in the direction."""
    b2: float = 0.99
    """Averaging rate of the moment that is kept."""
    decay: float = 1.0
    """Weight decay of matrices, multiplied by the learning rate."""
    decay_tables: bool = False
    """Whether token tables decay too; norms, biases and positions never do."""
    clip: float | None = 1.0
    """Largest norm of the whole gradient; None: never clipped."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the moment."""

    def __post_init__(self):
        check_rates(b1=self.b1, b2=self.b2)
        check_decay_and_clip(self.decay, self.clip)

    def build(self, total_steps: int, leaves: Leaves) -> optax.GradientTransformation:
        """The transformation for a run of ``total_steps`` updates of parameters like ``leaves``.

        Raises:
            ConfigError: the schedule does not fit the run.
        """
        return chain(
            optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.state_dtype),
            self.learning_rate(total_steps),
            leaves,
            decay=self.decay,
            decay_tables=self.decay_tables,
            clip=self.clip,
        )

    def learning_rate(self, total_steps: int) -> optax.Schedule:
        """The learning rate by the number of the update, counted from 0."""
        return self.schedule.build(total_steps)
