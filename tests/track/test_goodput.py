"""Where the time of a run went: the parts are its wall time, to the last bit, over all its lives.

Times are multiples of 1/64, which floats add up exactly.
"""

import random

import pytest

from lm.track.goodput import PARTS, Lives, account, in_words, read_lives, shares
from lm.track.report import write_report
from lm.train.activity import Activity

PHASES = ("data", "step", "save", "evaluate")


class Run:
    """A run whose clock is set by hand; wall time and the process's own clock differ."""

    def __init__(self, folder, draw: random.Random) -> None:
        self.path, self.draw, self.time = folder / "lives.jsonl", draw, 1_000_000.0
        self.first = self.told = self.time

    def pass_time(self, most: int = 640) -> None:
        self.time += self.draw.randrange(1, most) / 64

    def live(self, restored: int, steps: int, *, killed: bool) -> dict[int, float]:
        """A life; the seconds of each step that was told of."""
        began, made = self.time, {}
        activity = Activity(began - 777, lambda: self.time - 777)
        for phase in ("compile", "restore"):
            self.pass_time()
            activity(phase, 0)
        self.pass_time()
        lives = Lives(self.path, restored=restored, began=began)
        for step in range(restored + 1, restored + steps + 1):
            before = self.time
            for phase in ("data", "step"):
                activity(phase, step)
                self.pass_time()
            lives.spend(step, activity.take(), time=self.time)
            made[step] = self.time - before
            if self.draw.random() < 0.3:
                activity("save", step)
                self.pass_time()
                lives.spend(step, activity.take(), time=self.time)
            self.told = self.time
        if killed:
            self.pass_time()  # in a step that was never told of
        lives.close()
        return made


@pytest.mark.parametrize("seed", range(20))
def test_over_lives_with_kills_the_parts_are_the_wall_time_exactly(seed, tmp_path):
    draw = random.Random(seed)
    run = Run(tmp_path, draw)
    made, lost = {}, 0.0
    restored = 0
    for _ in range(draw.randrange(1, 6)):
        lost += sum(seconds for step, seconds in made.items() if step > restored)
        made = {step: seconds for step, seconds in made.items() if step <= restored}
        made |= run.live(restored, draw.randrange(1, 30), killed=True)
        restored = draw.choice([0, max(made), draw.randrange(max(made) + 1)])
        run.pass_time(100_000)
    parts = account(read_lives(run.path)).parts
    assert sum(parts.values()) == run.told - run.first
    assert parts["lost"] == lost
    assert parts["productive"] + parts["data_wait"] == sum(made.values())
    assert min(parts.values()) >= 0


def test_what_a_life_keeps_is_what_its_file_tells(tmp_path):
    path = tmp_path / "lives.jsonl"
    for restored in (0, 1):
        lives = Lives(path, restored=restored, began=10.0 + 10 * restored)
        lives.spend(restored + 1, {"step": 2.0, "start": 1.0}, time=13.0 + 10 * restored)
        lives.spend(restored + 1, {"save": 0.5, "data": 0.5}, time=14.0 + 10 * restored)
        assert account(read_lives(path)).parts == lives.parts
        lives.close()
    assert lives.parts["restart"] == 1 + 6 + 1
    assert lives.parts["productive"] == 4
    assert sum(lives.shares().values()) == pytest.approx(1, abs=1e-3)
    assert set(lives.shares()) == {f"goodput/{part}" for part in PARTS}


def test_a_line_torn_by_a_crash_costs_that_line_alone(tmp_path):
    path = tmp_path / "lives.jsonl"
    lives = Lives(path, restored=0, began=0.0)
    lives.spend(1, {"step": 1.0}, time=1.0)
    lives.spend(2, {"step": 1.0}, time=2.0)
    lives.close()
    path.write_bytes(path.read_bytes()[:-9])
    lives = Lives(path, restored=1, began=5.0)
    lives.spend(2, {"step": 1.0}, time=6.0)
    lives.close()
    parts = account(read_lives(path)).parts
    assert parts["productive"] == 2
    assert parts["restart"] == 4
    assert sum(parts.values()) == 6


def test_no_time_counts_while_a_finished_run_rests(tmp_path):
    path = tmp_path / "lives.jsonl"
    lives = Lives(path, restored=0, began=0.0)
    lives.spend(1, {"step": 1.0}, time=1.0, finished=True)
    lives.close()
    Lives(path, restored=1, began=1e6).close()
    assert sum(account(read_lives(path)).parts.values()) == 1


def test_a_folder_that_takes_nothing_stops_no_run(tmp_path, caplog):
    lives = Lives(tmp_path / "gone" / "lives.jsonl", restored=0, began=0.0)
    lives.spend(1, {"step": 1.0}, time=1.0)
    lives.close()
    assert lives.parts["productive"] == 1
    assert caplog.text.count("cannot be written") == 1


def test_the_report_shows_seconds_and_shares(tmp_path):
    lives = Lives(tmp_path / "lives.jsonl", restored=0, began=0.0)
    lives.spend(1, {"step": 30.0, "compile": 10.0}, time=40.0)
    lives.close()
    page = write_report(tmp_path).read_text()
    assert "Where the time went" in page
    assert "productive</td><td>30 s</td><td>75.0 %" in page
    assert 'style="width:25.000%' in page


def test_shares_of_nothing_are_nothing():
    assert set(shares(dict.fromkeys(PARTS, 0.0)).values()) == {0.0}


def test_in_words_the_productive_part_comes_first_and_specks_are_left_out():
    parts = dict.fromkeys(PARTS, 0.0) | {"restart": 40.0, "productive": 30.0, "data_wait": 29.9}
    parts["lost"] = 0.1
    assert in_words(parts) == "productive 30 %, restart 40 %, data wait 30 % of 1 min 40 s"
