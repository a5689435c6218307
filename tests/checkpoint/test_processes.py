"""One checkpoint by several processes on a shared file system, restored by another number."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess


ROOT = Path(__file__).parents[2]


def start(rank, processes, port, *words):
    numbers = [str(rank), str(processes), str(port)]
    command = [sys.executable, "-m", "tests.checkpoint.worker", *numbers, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def run(processes, *words):
    """What each process says last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [start(rank, processes, port, *words) for rank in range(processes)]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes
    # Gloo may speak on stdout too, after the worker's own line.
    told = [[line for line in text.splitlines() if line.startswith("{")] for text in said]
    return [json.loads(lines[-1]) for lines in told]


def test_two_processes_save_and_any_number_restores_the_same(tmp_path):
    folder = tmp_path / "checkpoints"
    saved = run(2, "save", folder)
    assert saved[0] == saved[1]
    assert saved[0]["steps"] == [2, 3]
    for processes in (1, 2):
        assert run(processes, "load", folder) == [saved[0]] * processes
    by_two = json.loads((folder / "3" / "digests.json").read_text())["leaves"]
    alone = tmp_path / "alone"
    run(1, "save", alone)
    assert json.loads((alone / "3" / "digests.json").read_text())["leaves"] == by_two
    # All processes agree that step 3 is damaged, and on the one before.
    damage(folder / "3")
    shutil.copytree(folder / "2", folder / "3.damaged")
    first, second = run(2, "load", folder)
    assert first == second
    assert (first["step"], first["steps"]) == (2, [2])
    assert (folder / "3.damaged-2").is_dir()


def damage(step):
    data = max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[100] ^= 1
    data.write_bytes(raw)
    return data.relative_to(step).as_posix()


def test_a_save_that_fails_on_one_process_is_no_step_on_any_and_nobody_hangs(tmp_path):
    """Process 1 cannot write its arrays of step 1; the save of step 2 follows as ever."""
    folder = tmp_path / "checkpoints"
    said = run(2, "fail", folder)
    for told in said:
        assert told["steps"] == [0, 2]
        assert told["failed"] == 1
        assert re.search(r"process 1 on \S+: .*No space left", told["why"])
    assert sorted(path.name for path in folder.iterdir()) == ["0", "2"]


def test_a_last_state_that_one_process_cannot_save_ends_all_with_the_same_paragraph(tmp_path):
    first, second = run(2, "fail-last", tmp_path / "checkpoints")
    assert first == second
    assert "step 1 could not be saved (process 1 on" in first["error"]
    assert first["steps"] == [0]


def test_hosts_that_see_different_steps_are_named_and_restore_none(tmp_path):
    """Process 1 has its own view of the folder, in which step 3 is missing."""
    folder, view = tmp_path / "checkpoints", tmp_path / "view"
    run(2, "save", folder)
    shutil.copytree(folder / "2", view / "2")
    first, second = run(2, "views", folder, view)
    assert first == second
    assert re.search(r"process 1 on \S+ does not see step 3\. Mount", first["error"])
    shutil.copytree(folder / "3", view / "3")
    first, second = run(2, "views", folder, view)
    assert first["step"] == second["step"] == 3


def test_a_step_that_shows_late_on_one_host_is_waited_for(tmp_path):
    folder, view = tmp_path / "checkpoints", tmp_path / "view"
    run(2, "save", folder)
    shutil.copytree(folder / "2", view / "2")
    first, second = run(2, "late", folder, view)
    assert first["step"] == second["step"] == 3


def test_a_folder_that_the_hosts_do_not_share_is_refused_before_training(tmp_path):
    first, second = run(2, "apart", tmp_path / "one", tmp_path / "other")
    assert first == second
    assert re.search(r"process 1 on \S+ cannot see that", first["error"])
    assert list((tmp_path / "one").iterdir()) == []


def test_damage_that_one_process_reads_is_named_by_all(tmp_path):
    folder = tmp_path / "checkpoints"
    run(2, "save", folder)
    name = damage(folder / "3")
    first, second = run(2, "load", folder)
    assert first == second
    assert f"file {name}" in first["messages"][0]
    assert "leaf trainable.w" in first["messages"][0]
