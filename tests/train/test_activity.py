"""What a process does: every second belongs to one phase, and steps tell how long one takes."""

from lm.train.activity import Activity


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_is_counted_once_and_in_its_phase():
    clock = Clock()
    activity = Activity(90.0, clock)
    activity("compile", 0)
    clock.now += 5
    activity("data", 1)
    clock.now += 0.25
    activity("step", 1)
    clock.now += 2
    assert activity.take() == {"start": 10, "compile": 5, "data": 0.25, "step": 2}
    assert activity.take() == {"step": 0}
    clock.now += 1
    assert activity.take() == {"step": 1}
    assert activity.now == ("step", 1, 105.25), "taking does not begin a phase anew"


def test_a_wait_for_data_behind_a_working_device_counts_as_the_step():
    clock = Clock()
    activity = Activity(clock=clock)
    for hidden, expected in ((True, {"step": 3}), (False, {"step": 0, "data": 3})):
        activity("data", 1)
        activity.take()
        clock.now += 3
        activity("step", 1, hidden=hidden)
        assert {k: v for k, v in activity.take().items() if v} == {
            k: v for k, v in expected.items() if v
        }


def test_laps_are_of_steps_but_the_first_with_nothing_else_between():
    clock = Clock()
    activity = Activity(clock=clock)
    for step, phases in enumerate((["step"], ["step"], ["step", "save"], ["step"], []), start=1):
        activity("data", step)
        for phase in phases:
            clock.now += 1 if phase == "step" else 50
            activity(phase, step)
    assert list(activity.laps) == [1, 1]
