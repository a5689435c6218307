"""A disk that is full, fails or forbids writing: training goes on while it can, and loses nothing.

The full disk is a tmpfs of a few megabytes where mounting is allowed, as it is for root on most
machines; elsewhere the tests that need it are skipped and say so.  What a test cannot mount, a
read-only or failing disk, is raised at a fault point.
"""

import errno
import os
import subprocess
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
    assert "could not be saved (it needs " in ended.said or os.strerror(errno.ENOSPC) in ended.said
    assert ended.code in (1, 2)
    assert "Traceback" not in ended.said
    assert 2 <= assert_same_so_far(small, bench.run("whole")) < STEPS
    resize(disk, LARGE)
    assert "resuming at step" in bench.finish("broken")
    assert_same(bench, "broken", "whole")


def test_a_run_trains_on_while_its_disk_is_full_for_a_time(bench, small, disk):
    """Room is made two steps before the end, while the run goes on."""
    gate, watched = bench.folder / "gate", f"wait={bench.folder / 'gate'}@data:{STEPS - 1}"

    joined = bench.start("broken", watched)
    while watched not in fired(bench.notes("broken")) and joined[0].poll() is None:
        time.sleep(0.05)
    resize(disk, LARGE)
    gate.touch()
    ended = over(joined)[0]
    assert watched in fired(bench.notes("broken")), ended.said
    assert ended.code == 0, ended.said
    assert "cannot be saved" in ended.said or "could not be saved" in ended.said
    assert_same(bench, "broken", "whole")


def test_saves_that_fail_once_are_told_and_cost_no_more_than_themselves(bench):
    """At four places: before its folder is made, in the background, before it is whole."""
    faults = [
        "EROFS@save_folder:4",
        "EIO@save_data:6",
        "EROFS@save_commit:8",
        "EIO@save_digests:10",
    ]
    ended = over(bench.start("failing", ",".join(faults)))[0]
    assert ended.code == 0, ended.said
    assert fired(bench.notes("failing")) == faults
    for error in (errno.EROFS, errno.EIO):
        assert os.strerror(error) in ended.said, ended.said
    lost = set(digests(bench.run("whole"))) - set(digests(bench.run("failing")))
    assert lost <= {4, 6, 8, 10}
    assert_same(bench, "failing", "whole")
