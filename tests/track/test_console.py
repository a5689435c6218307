"""The live line: what it says, how often, and that it never spoils a log file."""

import io
import shutil

import pytest

from lm.track.console import CLEAR, Console, evaluation_lines, train_line

METRICS = {
    "train/loss": 3.01214,
    "train/learning_rate": 2e-4,
    "train/gradient_norm": 0.612,
    "time/step_seconds": 0.41,
    "throughput/tokens_per_second": 5.1e6,
    "throughput/mfu_causal": 0.52,
}


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def seen(self) -> list[str]:
        """The lines as they stand once all is drawn."""
        return [line.rsplit(CLEAR, 1)[-1] for line in self.getvalue().split("\n")]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(stream, *, steps=100, seconds=1.0, metrics=METRICS):
    clock = Clock()
    console = Console(total_steps=steps, stream=stream, clock=clock)
    for step in range(1, steps + 1):
        clock.now += seconds
        console(step, metrics)
    console.close()
    return stream


def test_line_reads_as_promised():
    assert train_line(4_245, 21_400, METRICS, 4_320.0) == (
        "step 4 245/21 400 (19.8 %)  loss 3.0121  lr 2.0e-4  grad 0.61  0.41 s  5.10 M tok/s"
        "  MFU 52 %  ETA 1 h 12 min"
    )


def test_a_missing_number_leaves_no_trace():
    line = train_line(1, 10, {"train/loss": 2.0, "throughput/mfu_causal": None}, None)
    assert line == "step 1/10 (10.0 %)  loss 2.0000"


@pytest.mark.parametrize("columns", range(10, 140, 7))
def test_a_narrow_terminal_keeps_step_and_loss(columns):
    line = train_line(4_245, 21_400, METRICS, 4_320.0, columns)
    assert len(line) <= columns
    if columns > 60:
        assert "4 245" in line
        assert "loss 3.0121" in line
        assert "ETA" in line


def test_a_log_file_gets_plain_lines_at_a_moderate_rate_with_first_and_last():
    lines = run(io.StringIO()).getvalue().splitlines()
    assert not any("\r" in line or "\x1b" in line for line in lines)
    assert [line.split("/")[0] for line in lines] == [
        f"step {n}" for n in (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100)
    ]


def test_the_last_line_of_a_stopped_run_is_kept():
    stream = io.StringIO()
    console = Console(total_steps=100, stream=stream, clock=Clock())
    for step in (1, 2, 3):
        console(step, METRICS)
    console.close()
    console.close()
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()] == ["step 1", "step 3"]


def test_a_terminal_is_redrawn_in_place_and_keeps_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: shutil.os.terminal_size((100, 24)))
    screen = run(Screen())
    assert [line.split("/")[0] for line in screen.seen()] == [
        "step 1",
        "step 31",
        "step 61",
        "step 91",
        "step 100",
        "",
    ]
    assert screen.getvalue().count(CLEAR) == 100
    assert max(map(len, screen.seen())) < 100


def test_fast_steps_are_not_all_drawn():
    screen = run(Screen(), steps=1000, seconds=0.001)
    assert screen.getvalue().count(CLEAR) < 20
    assert screen.seen()[-2].startswith("step 1 000/1 000 (100.0 %)")


def test_eta_is_the_pace_so_far_and_leaves_the_first_step_out():
    stream, clock = io.StringIO(), Clock()
    console = Console(total_steps=101, stream=stream, clock=clock)
    clock.now = 60.0  # the first step compiles
    console(1, METRICS)
    clock.now = 80.0
    console(11, METRICS)  # 2 s a step
    first, second = stream.getvalue().splitlines()
    assert "ETA" not in first
    assert second.endswith("ETA 3 min")


def test_held_out_results_always_stay_and_the_live_line_returns():
    screen, clock = Screen(), Clock()
    console = Console(total_steps=100, stream=screen, clock=clock)
    console(1, METRICS)
    clock.now = 1.0
    console(2, METRICS)
    console(2, {"eval/held_out/loss": 2.9112, "eval/held_out/bits_per_byte": 1.98})
    kept = screen.seen()
    assert kept[1] == "held_out  step 2  loss 2.911  bits/byte 1.98"
    assert kept[2].startswith("step 2/100")


def test_each_held_out_set_has_its_line():
    lines = evaluation_lines(4_000, {"eval/a/loss": 1.0, "eval/b/c/loss": 2.0, "eval/a/n": None})
    assert lines == ["a  step 4 000  loss 1", "b/c  step 4 000  loss 2"]


def test_a_missing_peak_is_explained_once():
    metrics = {**METRICS, "throughput/mfu_causal": None}
    text = run(io.StringIO(), metrics=metrics).getvalue()
    assert text.count("no published peak") == 1
    assert "MFU 5" not in text
