"""``lm train`` over the life of a run: first, finished, longer, anew; and what machines read."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lm.cli.main import main
from tests.cli.conftest import TINY

SHORT = ["--optimizer.schedule.warmup", "1", "--training.length", "16"]
SHORT += ["--parallel.mesh.data", "8", "--parallel.mesh.fsdp", "1"]


class Told(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def lm(capfd):
    def call(*words: str) -> Told:
        capfd.readouterr()
        code = main(words)
        return Told(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A run of two steps, finished."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["train", str(TINY), "--runs", str(folder), "--training.steps", "2", *SHORT]
    assert main([*words, "--json", str(folder / "first.json")]) == 0
    return folder


@pytest.fixture
def runs(first, tmp_path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "runs"))


def test_the_figures_of_a_run_have_the_names_that_were_agreed(first):
    figures = json.loads((first / "first.json").read_text())
    names = ["run", "step", "finished", "tokens", "tokens_per_second", "parameters", "held_out"]
    assert list(figures) == [*names, "checkpoint", "goodput"]
    assert figures["step"] == 2
    assert figures["finished"] is True
    assert figures["tokens"] == 2 * 8 * 16
    assert figures["checkpoint"] == str(first / "tiny" / "checkpoints" / "2")


def test_a_finished_run_says_so_and_gives_the_same_figures(runs, lm):
    words = ["train", str(TINY), "--runs", str(runs), "--training.steps", "2", *SHORT]
    before = json.loads((runs / "first.json").read_text())
    told = lm(*words)
    assert told.code == 0
    assert "is finished: step 2" in told.out
    assert "--restart" in told.out
    again = lm(*words, "--json", "-")
    assert again.code == 0
    same = ("step", "finished", "tokens", "tokens_per_second", "parameters", "held_out")
    assert {name: again.json[name] for name in same} == {name: before[name] for name in same}
    fewer = lm("train", str(TINY), "--runs", str(runs), "--training.steps", "1", *SHORT)
    assert "is finished: step 2" in fewer.out


def test_a_longer_run_goes_on_says_what_the_schedule_does_and_traces_steps(runs, lm):
    config = runs / "tiny" / "experiment.json"
    words = ["train", str(config), "--runs", str(runs), "--training.steps", "5"]
    told = lm(*words, "--profile", "4:5", "--json", "-")
    assert told.code == 0, told.err
    assert told.json["step"] == 5
    assert told.json["finished"] is True
    assert "training.steps 2 -> 5" in told.err
    assert "resuming at step 2" in told.err
    assert "schedule   the learning rate of step 2 was 1.0e-3" in told.err
    assert "steps 4 to 5 in" in told.err
    assert list((runs / "tiny" / "profile").rglob("*.xplane.pb"))
    assert "step 5/5" in told.err, "the live line is for people"
    lines = (runs / "tiny" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_restart_moves_the_old_run_aside_and_a_stop_in_time_says_how_to_go_on(runs, lm):
    words = ["train", str(TINY), "--runs", str(runs), "--training.steps", "9", *SHORT]
    old = (runs / "tiny" / "metrics.jsonl").read_bytes()
    told = lm(*words, "--restart", "--stop-after", "0s")
    assert told.code == 0, told.err
    assert "stopped    at step 1 of 9; saved. Go on with: lm train" in told.out
    assert "--training.steps 9" in told.out.split("Go on with:")[1]
    assert "--stop-after" not in told.out.split("Go on with:")[1]
    (aside,) = runs.glob("tiny.*")
    assert (aside / "metrics.jsonl").read_bytes() == old
    assert (aside / "checkpoints" / "2" / "digests.json").is_file()
    assert (runs / "tiny" / "checkpoints" / "1" / "digests.json").is_file()


@pytest.mark.parametrize("what", ["config", "run", "checkpoint"])
def test_inspect_tells_sizes_of_configs_runs_and_checkpoints(first, lm, what):
    thing = {
        "config": TINY, "run": first / "tiny", "checkpoint": first / "tiny" / "checkpoints" / "2"
    }[what]  # fmt: skip
    told = lm("inspect", str(thing), "--json", "-")
    assert told.code == 0, told.err
    assert told.json["parameters"] == sum(leaf["size"] for leaf in told.json["leaves"])
    assert f"{told.json['parameters']:,} parameters" in told.err
    assert told.json["experiment"]["name"] == "tiny"
    if what != "config":
        assert told.json["record"]["step"] == 2


def test_report_and_generate_give_machines_what_they_give_people(first, lm):
    report = lm("report", str(first / "tiny"), "--json", "-")
    assert report.code == 0
    assert Path(report.json["report"]).is_file()
    words = ["generate", str(first / "tiny"), "--prompt", "a", "--prompt", "bc"]
    written = lm(*words, "--max-tokens", "3", "--json", "-")
    assert written.code == 0, written.err
    assert [list(one) for one in written.json] == [["prompt", "text", "ids", "stopped_by"]] * 2
    assert [one["prompt"] for one in written.json] == ["a", "bc"]
    for one in written.json:
        assert one["prompt"] + one["text"] in written.err


def test_evaluate_gives_the_figures_that_it_prints(first, lm, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be.\n" * 3)
    told = lm("evaluate", str(first / "tiny"), "--data", str(text), "--json", "-")
    assert told.code == 0, told.err
    wanted = {"step", "data", "tokens", "bytes", "loss", "perplexity", "bits_per_byte", "seconds"}
    assert wanted <= set(told.json)
    assert told.json["bytes"] == 63
    assert f"{told.json['loss']:.4f}" in told.err
    assert f"{told.json['bits_per_byte']:.4f}" in told.err


def test_help_of_a_config_lists_its_values(lm):
    told = lm("train", str(TINY), "--help")
    assert told.code == 0
    for name in ("--optimizer.schedule.peak", "--training.steps", "--model.stacks.0.repeats"):
        assert name in told.out
    assert "default: 40" in told.out
