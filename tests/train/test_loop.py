"""The order of events in the loop, seen through a program that writes down what is done to it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Tokens
from lm.train import loop
from lm.train.loop import DivergedError, Job, Times
from lm.train.state import TrainState

BLANK = np.zeros((1, 1), np.int32)
ROW = Batch(Tokens(BLANK, BLANK, BLANK), BLANK, BLANK.astype(np.float32), BLANK[0])


class Metric(jax.Array):
    """A device scalar that tells when the host reads it."""

    def __init__(self, events: list, step: int, value: float) -> None:
        self._events, self._step, self._value = events, step, value

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self._events.append(("read", self._step))
        return np.asarray(self._value, np.float32)

    def copy_to_host_async(self) -> None:
        """Starts a copy and waits for nothing."""

    def is_ready(self) -> bool:
        """Whether it is computed; the device is behind."""
        return False

    def block_until_ready(self) -> "Metric":
        self._events.append(("wait", self._step))
        return self

    def __float__(self) -> float:
        return float(self.__array__())

    @property
    def dtype(self) -> Any:
        return np.dtype(np.float32)

    @property
    def shape(self) -> Any:
        return ()

    ndim = size = aval = sharding = None


Metric.__abstractmethods__ = frozenset()


class Rows:
    """Batches that count, each of four sequences."""

    position = 0

    def __init__(self, events: list) -> None:
        self.events = events

    def __next__(self) -> Batch:
        self.position += 4
        self.events.append(("batch", self.position // 4))
        return ROW


def state(step: int = 0) -> TrainState:
    return TrainState(jnp.asarray(step, jnp.int32), {}, {}, (), jax.random.key(0))


def recorded(steps: int = 4, losses: dict[int, float] | None = None, **changes: Any):
    """Run the loop; what happened, in order, and how it ended."""
    events: list = []
    at = iter(range(1, steps + 1))
    given_up = list(changes.get("give_up", ()))

    def evaluate(number: int, _: Any) -> bool:
        if number in given_up:
            given_up.remove(number)
            events.append(("give up", number))
            return True
        events.append(("evaluate", number))
        return False

    def step(before: TrainState, _: Batch):
        number = next(at)
        events.append(("dispatch", number))
        return before, {"loss": Metric(events, number, (losses or {}).get(number, 1.0))}

    def track(number: int, values: Any, times: Times) -> None:
        assert set(values) == {"loss"}
        assert min(times) >= 0
        events.append(("track", number))

    job = Job(
        step=step,
        steps=steps,
        batches=Rows(events),
        place=lambda batch: batch,
        track=track,
        evaluate_at=lambda n: n in changes.get("evaluate", ()),
        evaluate=evaluate,
        save_at=lambda n: n in changes.get("save", ()),
        save=lambda n, _, position: events.append(("save", n, position)),
        stop_requested=lambda n: n in changes.get("stop", ()),
        doing=changes.get("doing", lambda phase, step, *, hidden=False: None),
    )
    try:
        return events, loop.run(job, state())[1]
    except DivergedError as error:
        return events, error


def test_metrics_of_a_step_are_read_once_and_only_after_the_next_was_dispatched():
    """On a real device the read of step n - 1 waits while n computes, and never the other way."""
    events, last = recorded(steps=4)
    assert last == 4
    seen = [e for e in events if e[0] in ("dispatch", "read", "wait")]
    assert seen == [
        ("dispatch", 1),
        ("dispatch", 2),
        ("read", 1),
        ("dispatch", 3),
        ("read", 2),
        ("dispatch", 4),
        ("read", 3),
        ("read", 4),
    ]
    assert [e[1] for e in events if e[0] == "track"] == [1, 2, 3, 4]


def test_a_save_follows_the_metrics_of_that_very_step():
    events, _ = recorded(steps=4, save=(2,))
    assert events.index(("track", 2)) < events.index(("save", 2, 8)) < events.index(("dispatch", 3))
    assert [e for e in events if e[0] == "save"] == [("save", 2, 8), ("save", 4, 16)]
    assert [e[1] for e in events if e[0] == "read"] == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_diverged_is_never_saved(bad):
    events, error = recorded(steps=4, losses={2: bad}, save=(1, 2, 3))
    assert isinstance(error, DivergedError)
    assert "step 2: loss is" in str(error)
    assert [e[1] for e in events if e[0] == "save"] == [1]
    assert ("track", 2) in events


def test_the_last_step_is_looked_at_before_it_is_saved():
    events, error = recorded(steps=3, losses={3: float("nan")})
    assert isinstance(error, DivergedError)
    assert not [e for e in events if e[0] == "save"]


def test_a_stop_saves_and_leaves():
    events, last = recorded(steps=9, stop=(3, 4))
    assert last == 3
    assert events[-1] == ("save", 3, 12)
    assert [e[1] for e in events if e[0] == "dispatch"] == [1, 2, 3]
    assert not [e for e in events if e[0] == "evaluate"]


def test_an_evaluation_comes_before_the_save_of_its_step():
    """Killed after the save, the run goes on from there and has the evaluation already."""
    events, _ = recorded(steps=4, evaluate=(2,), save=(2,))
    order = [e for e in events if e[0] in ("track", "evaluate", "save", "dispatch")]
    assert order[2:6] == [("track", 1), ("track", 2), ("evaluate", 2), ("save", 2, 8)]
    assert order[-2:] == [("evaluate", 4), ("save", 4, 16)]


@pytest.mark.parametrize("step", [2, 4])
def test_who_asked_for_a_stop_does_not_wait_for_an_evaluation(step):
    """It comes after the save; the last step has one in any case."""
    events, _ = recorded(steps=4, evaluate=(2,), stop=(step,))
    assert events[-2:] == [("save", step, 4 * step), ("evaluate", step)]


@pytest.mark.parametrize("step", [2, 4])
def test_a_stop_asked_in_an_evaluation_saves_first_and_makes_it_then(step):
    events, last = recorded(steps=4, evaluate=(2, 4), give_up=(step,))
    assert last == step
    assert events[-3:] == [("give up", step), ("save", step, 4 * step), ("evaluate", step)]


def test_whoever_watches_is_told_what_is_done_and_which_waits_kept_nothing_waiting():
    told: list = []

    def doing(phase: str, step: int, *, hidden: bool = False) -> None:
        told.append((phase, step, hidden))

    recorded(steps=3, evaluate=(2,), save=(2,), doing=doing)
    assert told == [
        ("data", 1, False),
        ("step", 1, False),
        ("data", 2, False),
        ("step", 2, True),
        ("evaluate", 2, False),
        ("save", 2, False),
        ("data", 3, False),
        ("step", 3, False),  # all was read before the save
        ("evaluate", 3, False),
        ("save", 3, False),
    ]


def test_a_finished_state_takes_no_step():
    events: list = []
    job = Job(*[lambda *_: events.append("called")] * 10)._replace(steps=4, batches=Rows(events))
    assert loop.run(job, state(4))[1] == 4
    assert not events
