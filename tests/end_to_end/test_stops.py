"""Runs that are asked to stop: all processes together, in time, and whole."""

import json
import signal
import time

import pytest

from lm.track.goodput import account, read_lives
from tests.end_to_end.conftest import begin, digests, lm, metrics, start, wait_for_step

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
LONG = ["--training.steps", "100000", "--evaluation.every", "100000", "--saving.every", "100000"]

SLOW_EVALUATION = """
import sys, time
from lm.cli.main import main
from lm.evaluate import perplexity
summed = perplexity._summed
def slowly(*scored):
    time.sleep(6)
    return summed(*scored)
perplexity._summed = slowly
sys.exit(main(sys.argv[1:]))
"""


def ended(joined, code: int = 0) -> tuple[list[str], float]:
    """What the processes said, and how long they took to end with a code."""
    began = time.monotonic()
    try:
        said = [process.communicate(timeout=240)[0] for process in joined]
    finally:
        for process in joined:
            process.kill()
    assert [process.returncode for process in joined] == [code] * len(joined), said
    return said, time.monotonic() - began


@pytest.mark.parametrize("asked", [0, 1])
def test_all_processes_save_the_same_step_and_end_well_whichever_of_them_was_asked(
    asked, config, tmp_path
):
    words = ["train", config(), "--runs", tmp_path / "runs", *LONG]
    joined = begin(words, tmp_path, 2)
    wait_for_step(joined, tmp_path, 3)
    joined[asked].send_signal(signal.SIGTERM)
    said, seconds = ended(joined)
    print(f"SIGTERM to {asked} of 2: saved and ended in {seconds:.1f} s")
    (step,) = digests(tmp_path / "runs" / "run")
    assert f"stopped    at step {step:,} of 100,000; saved. Go on with: lm train " in said[0]
    assert ("stopping   SIGTERM" in said[0]) == (asked == 0)
    command = said[0].split("Go on with: lm ")[1].splitlines()[0].split()
    assert f"resuming at step {step:,}" in lm([*command, "--stop-after", "0s"], tmp_path)


def test_a_stop_asked_in_an_evaluation_saves_before_the_evaluation_is_over(config, tmp_path):
    """Here a batch of it takes seconds; one process of two is asked while it is under way."""
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_EVALUATION)
    run = tmp_path / "runs" / "run"
    words = ["train", config(), "--runs", tmp_path / "runs", *LONG, "--evaluation.every", "4"]
    joined = begin(words, tmp_path, 2, program=(slow,))
    try:
        wait_for_step(joined, tmp_path, 3)
        while "evaluate" not in (tmp_path / "beats" / "1.json").read_text():
            assert all(process.poll() is None for process in joined)
            time.sleep(0.1)
        joined[1].send_signal(signal.SIGTERM)
        while not digests(run):
            assert all(process.poll() is None for process in joined)
            time.sleep(0.1)
        assert list(digests(run)) == [4]
        assert not any(key.startswith("eval/") for line in metrics(run) for key in line)
    finally:
        for process in joined:
            process.kill()
            process.communicate()


@pytest.mark.faults
def test_a_second_signal_ends_all_processes_at_once_and_leaves_what_was_saved(config, tmp_path):
    words = ["train", config(), "--runs", tmp_path / "runs", *LONG, "--saving.every", "2"]
    joined = begin(words, tmp_path, 2)
    wait_for_step(joined, tmp_path, 8)
    joined[1].send_signal(signal.SIGSTOP)  # so that nobody can agree on anything
    time.sleep(1)
    joined[0].send_signal(signal.SIGTERM)
    time.sleep(0.5)
    joined[0].send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert joined[0].wait(timeout=20) == 128 + signal.SIGTERM
    print(f"second SIGTERM: ended in {time.monotonic() - began:.1f} s")
    joined[1].send_signal(signal.SIGCONT)
    said, _ = ended(joined, 128 + signal.SIGTERM)
    assert "Traceback" not in said[0] + said[1]
    assert "stopped at once by SIGTERM" in said[0]
    assert "stopped at once by SIGTERM" in said[1]
    assert digests(tmp_path / "runs" / "run")


def test_processes_stop_in_time_and_end_well(config, tmp_path):
    """The limit is a clock's, so this one reads it."""
    words = ["train", config(), "--runs", tmp_path / "runs", *LONG, "--stop-after", "60s"]
    began = time.time()
    said, seconds = ended(begin(words, tmp_path, 2))
    (saved,) = (tmp_path / "runs" / "run").glob("checkpoints/*/digests.json")
    whole = saved.stat().st_mtime - began
    print(f"--stop-after 60s: saved after {whole:.1f} s, ended after {seconds:.1f} s")
    assert whole < seconds < 60
    assert "stopping   the time is up" in said[0]
    assert "saved. Go on with" in said[0]


@pytest.mark.faults
def test_the_time_of_a_run_that_was_killed_is_accounted_for(config, tmp_path):
    """Killed before a save: its steps are lost ones, and the time until it goes on a restart."""
    folder = tmp_path / "runs" / "run"
    words = ["train", config(), "--runs", tmp_path / "runs", "--evaluation.every", "1000"]
    first = time.time()
    process = start([*words, "--training.steps", "100000", "--saving.every", "1000"], tmp_path)
    while len(read_lives(folder / "lives.jsonl")) < 6:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    lost = sum(
        seconds
        for line in read_lives(folder / "lives.jsonl")
        for part, seconds in line.get("spent", {}).items()
        if part in ("productive", "data_wait")
    )
    time.sleep(3)
    figures = tmp_path / "figures.json"
    lm([*words, "--json", figures], tmp_path)
    told, wall = json.loads(figures.read_text())["goodput"], time.time() - first
    assert told == account(read_lives(folder / "lives.jsonl")).parts
    assert told["lost"] == pytest.approx(lost)
    assert told["restart"] > 3
    assert min(told[part] for part in ("productive", "compile", "checkpoint")) > 0
    # What is missing is the first start of Python, and what comes after the last save.
    assert wall - 6 < sum(told.values()) < wall
    print(f"{wall:.1f} s: {told}")
    assert "Where the time went" in (folder / "report.html").read_text()


def test_processes_that_find_the_run_finished_end_well_together(config, tmp_path):
    words = ["train", config(), "--runs", tmp_path / "runs", "--training.steps", "4"]
    ended(begin(words, tmp_path, 2))
    said, _ = ended(begin(words, tmp_path, 2))
    assert "is finished: step 4" in said[0]
    assert "gone" not in said[0] + said[1]


def test_the_mistake_of_one_process_ends_all_with_its_words_and_code(config, tmp_path):
    """Only the first one takes the run's folder, where another training sits already."""
    words = ["train", config(), "--runs", tmp_path / "runs", *LONG]
    alone = start(words, tmp_path)
    try:
        while not read_lives(tmp_path / "runs" / "run" / "lives.jsonl"):
            assert alone.poll() is None, alone.communicate()[0]
            time.sleep(0.05)
        said, _ = ended(begin(words, tmp_path, 2), code=2)
    finally:
        alone.kill()
        alone.communicate()
    assert all("is being trained already" in text for text in said)
    assert "Traceback" not in said[0] + said[1]
