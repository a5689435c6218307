"""A run that was killed or stopped, and went on, is the run that was never disturbed: every bit.

Dropout is on, two microbatches, an evaluation on the way.  Each start costs seconds, hence slow.
"""

import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import digests, finished, lm, metrics, start

STEPS = 24
pytestmark = pytest.mark.slow  # every test starts processes that import and compile


def killed(words, cwd, devices, sign: Path) -> None:
    """Start a run, and kill it with no warning the moment ``sign`` appears."""
    process = start(words, cwd, devices)
    try:
        for _ in range(200_000):
            if sign.exists():
                break
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.001)
        process.kill()
        process.wait(timeout=60)
        assert process.returncode == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


@pytest.mark.faults
@pytest.mark.parametrize(("devices", "data"), [(1, 1), (4, 2)], ids=["alone", "data2-fsdp2"])
def test_a_run_killed_again_and_again_ends_as_the_undisturbed_one(devices, data, config, tmp_path):
    """Killed while its first save is written, between saves, and while a later one is written."""
    words = ["train", config(data), "--runs", tmp_path / "runs", "--name"]
    lm([*words, "whole"], tmp_path, devices)
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    saves = broken / "checkpoints"
    for sign in ("4.partial", "8", "16.partial"):
        killed([*words, "broken"], tmp_path, devices, saves / sign)
    said = lm([*words, "broken"], tmp_path, devices)
    assert "resuming at step" in said
    assert not list(saves.glob("*.partial"))
    assert list(digests(whole)) == list(range(4, STEPS + 1, 4))
    assert digests(broken) == digests(whole)
    assert metrics(broken) == metrics(whole)
    lines = [line["step"] for line in metrics(whole) if "train/loss" in line]
    assert lines == list(range(1, STEPS + 1))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_run_asked_to_stop_saves_says_how_to_go_on_and_goes_on_as_if_nothing_was(
    sign, config, tmp_path
):
    words = ["train", config(), "--runs", tmp_path / "runs", "--name"]
    long = ["--evaluation.every", "1000"]
    process = start([*words, "broken", *long], tmp_path)
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 1/"):
            break
    process.send_signal(sign)
    said = "".join(lines) + finished(process)
    last = max(digests(tmp_path / "runs" / "broken"))
    if last < STEPS:
        assert f"stopped    at step {last} of {STEPS}; saved. Go on with: lm train " in said
        command = said.split("Go on with: lm ")[1].splitlines()[0]
        assert "resuming at step" in lm(command.split(), tmp_path)
    lm([*words, "whole", *long], tmp_path)
    broken, whole = digests(tmp_path / "runs" / "broken"), digests(tmp_path / "runs" / "whole")
    assert {step: broken[step] for step in whole} == whole
    assert metrics(tmp_path / "runs" / "broken") == metrics(tmp_path / "runs" / "whole")
    again = lm([*words, "whole", *long], tmp_path)
    assert "is finished: step 24" in again
