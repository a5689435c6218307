"""Adafactor (Shazeer 2018, arXiv:1804.04235)."""

from dataclasses import dataclass

import optax

from lm.errors import ConfigError
from lm.optim.chain import chain, check_decay_and_clip
from lm.optim.optimizer import Leaves
from lm.optim.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """A second moment kept as a row and a column for each matrix, and no first moment.

    Optax's parts.  Two differences from ``optax.adafactor``: decay is multiplied by the learning
    rate, as in our other optimizers, and the gradient's global norm may be clipped.  A stacked
    parameter counts as one array where a root mean square is taken.
    """

    schedule: Schedule
    """Learning rate over the run; relative to a parameter's size where ``relative``."""
    decay_exponent: float = 0.8
    """The second moment's averaging rate at update t is 1 - t ** -decay_exponent."""
    clip_update: float | None = 1.0
    """Largest root mean square of one parameter's update, before the learning rate."""
    relative: bool = True
    """Multiply each update by the root mean square of its parameter."""
    decay: float = 0.0
    """Weight decay of matrices, multiplied by the learning rate."""
    decay_tables: bool = False
    """Whether token tables decay too; norms, biases and positions never do."""
    clip: float | None = None
    """Largest norm of the whole gradient; None: never clipped."""

    def __post_init__(self):
        check_decay_and_clip(self.decay, self.clip)
        if not 0.0 < self.decay_exponent <= 1.0:
            raise ConfigError(f"decay_exponent={self.decay_exponent}: must lie in (0, 1].")
        if self.clip_update is not None and not self.clip_update > 0:
            raise ConfigError(f"clip_update={self.clip_update}: must be positive; None for none.")

    def build(self, total_steps: int, leaves: Leaves) -> optax.GradientTransformation:
        """The transformation for a run of ``total_steps`` updates of parameters like ``leaves``.

        Raises:
            ConfigError: the schedule does not fit the run.
        """
        parts = [optax.scale_by_factored_rms(decay_rate=self.decay_exponent)]
        if self.clip_update is not None:
            parts.append(optax.clip_by_block_rms(self.clip_update))
        if self.relative:
            parts.append(optax.scale_by_param_block_rms())
        return chain(
            optax.chain(*parts),
            self.learning_rate(total_steps),
            leaves,
            decay=self.decay,
            decay_tables=self.decay_tables,
            clip=self.clip,
        )

    def learning_rate(self, total_steps: int) -> optax.Schedule:
        """The learning rate by the number of the update, counted from 0."""
        return self.schedule.build(total_steps)
