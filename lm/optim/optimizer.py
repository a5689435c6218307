"""The contract of an optimizer: a config that builds an Optax transformation."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import optax

Leaves = Mapping[str, Any]
"""A tree like the parameters with an ``lm.batch.Leaf`` in the place of each array."""


@runtime_checkable
class Optimizer(Protocol):
    """What every optimizer config of this package offers."""

    def build(self, total_steps: int, leaves: Leaves) -> optax.GradientTransformation:
        """The transformation for a run of ``total_steps`` updates of parameters like ``leaves``."""
        ...

    def learning_rate(self, total_steps: int) -> optax.Schedule:
        """The learning rate by the number of the update, counted from 0; for tracking."""
        ...
