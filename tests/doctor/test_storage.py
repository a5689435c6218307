import errno
import os
import threading
import time
from types import SimpleNamespace

import pytest

from lm.doctor import storage
from lm.doctor.exchange import Exchange
from lm.doctor.storage import Scratch

BLOCK = 2**16


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(storage, "BLOCK", BLOCK)
    monkeypatch.setattr(storage, "PAYLOAD", 3 * BLOCK)


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "not" / "there"


def names(ranks) -> str:
    return ", ".join(f"process {rank}" for rank in sorted(ranks))


def looked(runs, need: int = 0):
    scratch = Scratch(runs)
    try:
        told = storage.facts(scratch, Exchange(), need, 20.0)
    finally:
        scratch.close()
        scratch.leave()
    (check,) = storage.judge({0: told}, names)
    return check


def seen(exchange, folder):
    """What process 0 finds of a folder that each of several looks into."""
    scratch = Scratch(folder)
    told = storage.facts(scratch, exchange, 0, 20.0)
    every = exchange.gather("told", told, 20.0)
    scratch.close()
    exchange.gather("closed", None, 20.0)
    exchange.announce("all closed", None, 20.0)
    scratch.leave()
    return list(storage.judge(every, names)) if exchange.rank == 0 else None


def test_what_is_written_comes_back_and_nothing_stays(runs, tmp_path):
    check = looked(runs)
    assert check.status in ("ok", "warn"), check  # a warning where /tmp is memory
    assert check.figures["payload_bytes"] == 3 * BLOCK
    assert check.figures["write"] > 0
    assert check.figures["read"] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(tmp_path):
    (tmp_path / "run").mkdir()
    looked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_one_flipped_bit_is_found(tmp_path, monkeypatch):
    read = os.pread

    def flipped(file, size, offset):
        block = bytearray(read(file, size, offset))
        if offset == BLOCK:
            block[1234] ^= 1
        return bytes(block)

    monkeypatch.setattr(os, "pread", flipped)
    check = looked(tmp_path)
    assert check.status == "WRONG"
    assert "65 536" in check.said
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_changed_places_are_found(tmp_path, monkeypatch):
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda f, n, offset: read(f, n, (offset + BLOCK) % (2 * n)))
    assert looked(tmp_path).status == "WRONG"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_nothing_is_wrong(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    check = looked(tmp_path)
    assert check.status == "WRONG"
    assert os.strerror(code) in check.said
    assert "--runs DIR" in check.mend


def test_a_file_in_the_place_of_the_folder_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    assert looked(tmp_path / "file" / "runs").status == "WRONG"


def test_a_full_disk_is_wrong_and_left_as_it_was(tmp_path, monkeypatch):
    write, written = os.write, []

    def full(file, data):
        if sum(written) > BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(write(file, data))
        return written[-1]

    monkeypatch.setattr(os, "write", full)
    check = looked(tmp_path)
    assert check.status == "WRONG"
    assert "No space left" in check.said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("need", "status"), [(2 * 10**9, "WRONG"), (600 * 10**6, "warn"), (10**6, "ok")]
)
def test_room_is_compared_with_a_checkpoint(tmp_path, monkeypatch, need, status):
    usage = SimpleNamespace(free=10**9)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(storage, "file_system", lambda path: "ext4")
    check = looked(tmp_path, need)
    assert check.status == status
    assert "1 GB free" in check.said
    assert (check.mend is None) == (status == "ok")


def test_runs_kept_in_memory_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "file_system", lambda path: "tmpfs")
    assert looked(tmp_path).status == "warn"


def test_who_does_not_see_what_process_0_writes_is_named(tmp_path, together, monkeypatch):
    monkeypatch.setattr(storage, "LOOKS", 0.3)

    def work(exchange):
        return seen(exchange, tmp_path / ("own" if exchange.rank == 2 else "shared"))

    _, shared = together(work, 3)[0]
    assert (shared.name, shared.status) == ("shared", "WRONG")
    assert "process 2" in shared.said
    assert "process 1" not in shared.said
    assert list(tmp_path.iterdir()) == []


def test_all_that_see_one_folder_are_well(tmp_path, together):
    _, shared = together(lambda exchange: seen(exchange, tmp_path), 2)[0]
    assert shared.status == "ok"


def test_one_that_is_stopped_while_it_writes_leaves_nothing(tmp_path, monkeypatch):
    writing, go_on = threading.Event(), threading.Event()
    write = os.write

    def slow(file, data):
        writing.set()
        go_on.wait(10)
        return write(file, data)

    monkeypatch.setattr(os, "write", slow)
    scratch = Scratch(tmp_path / "runs")
    ended = []

    def work():
        try:
            storage.measure(scratch, "x", 20.0)
        except OSError as error:
            ended.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert writing.wait(10)
    scratch.close()
    scratch.leave()
    assert list(tmp_path.iterdir()) == []
    go_on.set()
    thread.join(10)
    assert ended == ["stopped"]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_doctor_left_is_taken_away_by_the_next(tmp_path):
    old, new = tmp_path / ".doctor-old", tmp_path / ".doctor-new"
    for path in (old, new):
        path.write_text("x")
    long_ago = time.time() - 2 * storage.STALE
    os.utime(old, (long_ago, long_ago))
    looked(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_the_kind_of_file_system_is_told():
    assert storage.file_system(storage.Path("/proc")) == "proc"
