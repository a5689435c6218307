"""The watchdog barks at steps and waits that do not end, and at nothing else."""

import threading

import pytest

from lm.train.activity import Activity
from lm.train.watchdog import FACTOR, Watchdog


class Watched:
    """An activity whose clock is set by hand, a second a step, and what is said of it."""

    def __init__(self, tmp_path, lap: float = 1.0, floor: float = 300.0) -> None:
        self.time = 0.0
        self.activity = Activity(0.0, lambda: self.time)
        self.lap, self.file, self.said = lap, tmp_path / "stacks" / "1.txt", []
        self.dog = Watchdog(
            self.activity, floor=floor, who="rank 1 (h)", file=self.file, say=self.said.append
        )

    def step(self, step: int) -> None:
        for phase, seconds in (("data", 0.0), ("step", self.lap)):
            self.activity(phase, step)
            self.wait(seconds)

    def wait(self, seconds: float) -> None:
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + 1)
            self.dog.look()


def test_a_stuck_step_is_told_once_and_again_as_it_doubles_with_all_stacks(tmp_path):
    watched = Watched(tmp_path)
    for step in (1, 2, 3):
        watched.step(step)
    assert not watched.said
    hold = threading.Event()
    stuck = threading.Thread(target=hold.wait, name="the loader")
    stuck.start()
    watched.wait(298)
    assert not watched.said
    watched.wait(2)
    assert len(watched.said) == 1
    watched.wait(298)
    assert len(watched.said) == 1
    watched.wait(2)
    hold.set()
    stuck.join()
    assert len(watched.said) == 2
    assert "step 3 has lasted 300 s on rank 1 (h); a step takes 1 s" in watched.said[0]
    assert "step 3 has lasted 600 s" in watched.said[1]
    assert "thread the loader" in watched.said[0]
    assert "in wait\n" in watched.said[0]
    assert watched.file.read_text() == "".join(watched.said)
    watched.step(4)
    watched.step(5)
    assert len(watched.said) == 2


def test_a_wait_for_data_is_told_as_one(tmp_path):
    watched = Watched(tmp_path, floor=5.0)
    watched.step(1)
    watched.step(2)
    watched.activity("data", 3)
    watched.wait(FACTOR + 1)
    (said,) = watched.said
    assert f"the wait for the data of step 3 has lasted {FACTOR} s" in said


@pytest.mark.parametrize("phase", ["start", "compile", "restore", "evaluate", "save", "done"])
def test_what_may_last_is_never_told_of(phase, tmp_path):
    watched = Watched(tmp_path)
    for step in (1, 2, 3):
        watched.step(step)
    watched.activity(phase, 3)
    watched.wait(10_000)
    watched.step(4)
    assert not watched.said


def test_the_first_step_of_a_life_may_last(tmp_path):
    watched = Watched(tmp_path)
    watched.activity("compile", 0)
    watched.wait(2_000)
    watched.activity("data", 7)
    watched.wait(2_000)
    watched.activity("step", 7)
    watched.wait(2_000)
    assert not watched.said


def test_long_steps_have_more_time(tmp_path):
    watched = Watched(tmp_path, lap=60.0)
    for step in (1, 2, 3):
        watched.step(step)
    watched.wait(FACTOR * 60 - 61)
    assert not watched.said
    watched.wait(2)
    assert len(watched.said) == 1
