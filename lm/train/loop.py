"""The training loop: the order of its lines is the order of events, and nothing else happens."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from lm.batch import Batch, Params
from lm.errors import UserError
from lm.train.activity import Phase
from lm.train.state import TrainState
from lm.train.step import Metrics


class DivergedError(UserError):
    """The loss is no number any more."""


@runtime_checkable
class Batches(Protocol):
    """Batches in order, with the one integer that says how far."""

    position: int

    def __next__(self) -> Batch:
        """The next batch of host arrays: this process's rows."""
        ...


@runtime_checkable
class Doing(Protocol):
    """Told what comes next, as ``lm.train.activity.Activity`` is."""

    def __call__(self, phase: Phase, step: int, *, hidden: bool = False) -> None:
        """``hidden``: the wait for data that is over kept no device waiting."""
        ...


class Job(NamedTuple):
    """What a loop needs; every field is live."""

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    """The compiled step; donates the state."""
    steps: int
    batches: Batches
    place: Callable[[Batch], Batch]
    """Host rows -> global arrays."""
    track: Callable[[int, Mapping[str, float], "Times"], None]
    """(step, its metrics, its times); raises where training may not go on"""
    evaluate_at: Callable[[int], bool]
    evaluate: Callable[[int, Params], bool]
    """(step, parameters) -> whether it was given up because a stop was requested meanwhile."""
    save_at: Callable[[int], bool]
    save: Callable[[int, TrainState, int], None]
    """(step, state, data position); returns once the state may change."""
    stop_requested: Callable[[int], bool]
    """Asked once after every step."""
    trace: Callable[[int, TrainState], None] = lambda step, state: None
    """(step that comes next, state so far): told before every step, and once after the last."""
    doing: Doing = lambda phase, step, *, hidden=False: None


class Times(NamedTuple):
    """Seconds of one step."""

    step: float
    data_wait: float


def run(job: Job, state: TrainState) -> tuple[TrainState, int]:
    """Train from the state's step to the last, or to the step at which a stop was requested.

    Step n is in flight while the host reports step n - 1.  Before a save that very step's metrics
    are read: a state nobody looked at is never kept.  An evaluation comes before the save of its
    step, so that a run that goes on from there has lost none.

    Raises:
        DivergedError: a number that is not finite, and its update was made; checkpoints are as
            they were.
    """
    start = int(state.step)
    reported = _Reports(job)
    step = start
    while step < job.steps:
        job.trace(step + 1, state)
        job.doing("data", step + 1)
        began = time.perf_counter()
        host_batch = next(job.batches)
        waited = time.perf_counter() - began
        job.doing("step", step + 1, hidden=reported.busy())
        with jax.transfer_guard("disallow"):  # of what happens every step, nothing is implicit
            batch = job.place(host_batch)
            state, metrics = job.step(state, batch)
            step += 1
            reported.hand_over(step, metrics, waited)
        stop = job.stop_requested(step)
        last = step == job.steps
        evaluate = job.evaluate_at(step) or last
        if evaluate and not stop:
            stop = reported.evaluate(step, state.trainable)
        if job.save_at(step) or stop or last:
            reported.catch_up()
            job.doing("save", step)
            job.save(step, state, job.batches.position)
        if evaluate and stop:  # whoever asks may not wait for long: the state comes first
            reported.evaluate(step, state.trainable)
        if stop:
            break
    reported.catch_up()
    job.trace(job.steps + 1, state)
    return state, step


class _Reports:
    """Metrics on their way to the trackers, one step behind."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.waiting: tuple[int, Metrics, float] | None = None
        self.last_read = time.perf_counter()

    def hand_over(self, step: int, metrics: Metrics, waited: float) -> None:
        """Take a step's metrics, still being computed, and report those of the step before."""
        before, self.waiting = self.waiting, (step, metrics, waited)
        self._report(before)

    def catch_up(self) -> None:
        """Report all that was handed over; waits for the step in flight."""
        before, self.waiting = self.waiting, None
        self._report(before)

    def busy(self) -> bool:
        """Whether the devices still work at what was handed over."""
        if self.waiting is None:
            return False
        computed: Any = self.waiting[1].values()
        return not all(value.is_ready() for value in computed)

    def evaluate(self, step: int, params: Params) -> bool:
        """Report all that was handed over, then evaluate; the time it takes is no training."""
        self.catch_up()
        self.job.doing("evaluate", step)
        given_up = self.job.evaluate(step, params)
        self.last_read = time.perf_counter()
        return given_up

    def _report(self, handed: tuple[int, Metrics, float] | None) -> None:
        if handed is None:
            return
        step, metrics, waited = handed
        values: dict[str, Any] = {n: float(v) for n, v in jax.device_get(dict(metrics)).items()}
        now = time.perf_counter()
        self.job.track(step, values, Times(now - self.last_read, waited))
        self.last_read = now
        wrong = [f"{n} is {v}" for n, v in values.items() if not math.isfinite(v)]
        if wrong and not values.get("skipped"):  # else the state is as it was before
            raise DivergedError(
                f"step {step}: {', '.join(wrong)}. Training cannot go on from numbers like these; "
                "the checkpoints before are untouched. Lower optimizer.schedule.peak, lengthen its "
                "warm-up, or clip the gradient (optimizer.clip), and start again from the last one."
            )
