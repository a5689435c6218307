"""The compiled step as a guarded run calls it."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from lm.batch import Batch
from lm.train.recompute import Recompute
from lm.train.state import TrainState
from lm.train.step import Metrics


class RollBackError(Exception):
    """The run is to go back to before this step; no failure, and caught by who runs the loop."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step} spiked")
        self.step = step


class Guarded:
    """Counts the steps, hands each its limits, and lets some be computed twice."""

    def __init__(
        self,
        compiled: Callable[..., tuple[TrainState, Metrics]],
        mesh: Any,
        *,
        start: int,
        limits: Callable[[int], Array] | None = None,
        recompute_every: int | None = None,
    ) -> None:
        """``start`` steps are made; ``limits`` are asked for by the number of a step."""
        self.compiled, self.limits = compiled, limits
        self.number = start
        self.every = recompute_every
        self.twice = Recompute(compiled, mesh)
        self.in_flight: Any = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The next step.

        Raises:
            CorruptionError: it was computed twice, with two results.
        """
        self.number += 1
        limits = () if self.limits is None else (self.limits(self.number),)
        if self.every is not None and self.number % self.every == 0:
            state, metrics = self.twice(self.number, state, batch, *limits)
        else:
            state, metrics = self.compiled(state, batch, *limits)
        self.in_flight = metrics
        return state, metrics

    def go_back(self, step: int) -> None:
        """``step`` steps are made now; waits for what is under way."""
        jax.block_until_ready(self.in_flight)
        self.number, self.in_flight = step, None
