"""The contract of an objective: two doors of one room, since mask and loss must agree."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from lm.batch import Batch, Example, LogitsFn, Loss, Output


@runtime_checkable
class Objective(Protocol):
    """What is predicted from a row of packed documents."""

    def prepare(
        self,
        ids: Int[np.ndarray, " window"],
        segments: Int[np.ndarray, " window"],
        rng: np.random.Generator,
    ) -> Example:
        """On the host: T + 1 tokens to inputs, targets and weights of length T.

        Every random choice comes from ``rng``, which is keyed by where the row stands in the data.
        """
        ...

    def loss(self, logits: LogitsFn, output: Output, batch: Batch) -> Loss:
        """On the device, traced: sums over the tokens of the batch."""
        ...
