"""A disk that is full, fails or forbids writing: training goes on while it can, and loses nothing.

The full disk is a tmpfs of a few megabytes where mounting is allowed, as it is for root on most
machines; elsewhere the tests that need it are skipped and say so.  What a test cannot mount, a
read-only or failing disk, is raised at a fault point.
"""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import digests
from tests.faults.battery import Bench, assert_same, assert_same_so_far, fired, over

pytestmark = [pytest.mark.slow, pytest.mark.faults]

STEPS = 16
OPTIONS = ("--training.steps", str(STEPS), "--saving.every", "2", "--evaluation.every", "4")
SMALL, LARGE = "3m", "64m"
"""Room for some checkpoints of half a megabyte, and for all."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path_factory.mktemp("disk")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "lm-test", folder], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.fixture(scope="module")
def bench(compiled, tmp_path_factory) -> Bench:
    made = Bench(folder=tmp_path_factory.mktemp("full"), compiled=compiled, options=OPTIONS)
    made.finish("whole")
    return made


@pytest.fixture
def small(bench, disk) -> Iterator[Path]:
    """A run's folder on the small disk."""
    (disk / "broken").mkdir()
    bench.run("broken").symlink_to(disk / "broken")
    yield bench.run("broken")
    bench.run("broken").unlink()
    subprocess.run(["rm", "-rf", disk / "broken"], check=True)
    subprocess.run(["rm", "-rf", bench.notes("broken")], check=True)
    resize(disk, SMALL)


def test_a_run_on_a_full_disk_says_so_and_goes_on_from_its_last_checkpoint_when_there_is_room(
    bench, small, disk
):
    ended = over(bench.start("broken"))[0]
    assert os.strerror(errno.ENOSPC) in ended.said or "RESOURCE_EXHAUSTED" in ended.said
    assert ended.code in (1, 2)
    assert "Traceback" not in ended.said
    assert 2 <= assert_same_so_far(small, bench.run("whole")) < STEPS
    resize(disk, LARGE)
    assert "resuming at step" in bench.finish("broken")
    assert_same(bench, "broken", "whole")


def test_a_run_trains_on_while_its_disk_is_full_for_a_time(bench, small, disk):
    """Room is made two steps before the end, while the run goes on."""
    gate, watched = bench.folder / "gate", f"wait={bench.folder / 'gate'}@data:{STEPS - 1}"

    def make_room() -> None:
        end = time.monotonic() + 120
        while watched not in fired(bench.notes("broken")) and time.monotonic() < end:
            time.sleep(0.05)
        resize(disk, LARGE)
        gate.touch()

    helper = threading.Thread(target=make_room)
    helper.start()
    ended = over(bench.start("broken", watched))[0]
    gate.touch()
    helper.join()
    assert watched in fired(bench.notes("broken")), ended.said
    assert ended.code == 0, ended.said
    assert "cannot be saved" in ended.said or "could not be saved" in ended.said
    assert_same(bench, "broken", "whole")


@pytest.mark.parametrize("phase", ["save_folder", "save_data", "save_commit", "save_digests"])
@pytest.mark.parametrize("name", ["EROFS", "EIO"])
def test_a_save_that_fails_once_is_told_and_costs_no_more_than_itself(name, phase, bench):
    """One run for each would cost minutes: every error strikes at one phase and another."""
    if (name == "EIO") == (phase in ("save_folder", "save_commit")):
        pytest.skip("the other error strikes here")
    run = f"{name}-{phase}"
    ended = over(bench.start(run, f"{name}@{phase}:6"))[0]
    assert f"{name}@{phase}:6" in fired(bench.notes(run))
    assert os.strerror(getattr(errno, name)) in ended.said, ended.said
    assert ended.code == 0, ended.said
    assert set(digests(bench.run("whole"))) - set(digests(bench.run(run))) <= {6}
    assert_same(bench, run, "whole")
