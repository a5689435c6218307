"""Lines are lost to no full disk, nor torn by one."""

import errno
import json
import logging
import os

import pytest

from lm.errors import ResourceError
from lm.track import patient
from lm.track.jsonl import JsonLines, read
from lm.track.patient import PatientFile


class Disk:
    """Takes so many bytes more."""

    def __init__(self, monkeypatch, room):
        self.room = room
        real = os.write

        def write(file, data):
            if self.room == 0 and data:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = real(file, data[: self.room])
            self.room -= taken
            return taken

        monkeypatch.setattr(os, "write", write)


def test_lines_that_a_full_disk_refuses_are_written_when_there_is_room(
    tmp_path, monkeypatch, caplog
):
    disk = Disk(monkeypatch, 30)
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(1, 11):  # the second one is written in part
        lines(step, {"train/loss": 1.0})
        lines.flush()
    assert len((tmp_path / "metrics.jsonl").read_bytes()) == 30
    assert len(caplog.records) == 1
    assert "metrics.jsonl: cannot be written now (No space left" in caplog.text
    disk.room = 10**6
    lines(11, {"train/loss": 1.0})
    lines.close()
    assert [entry["step"] for entry in read(tmp_path / "metrics.jsonl")] == list(range(1, 12))
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(text)


def test_lines_that_nobody_takes_to_the_end_are_an_error(tmp_path, monkeypatch):
    Disk(monkeypatch, 0)
    file = PatientFile(tmp_path / "file")
    file.write("line")
    with pytest.raises(ResourceError, match=r"file: cannot be written \(No space left"):
        file.close()
    file.close()
    assert file.closed


def test_what_is_held_back_is_bounded(tmp_path, monkeypatch):
    Disk(monkeypatch, 0)
    monkeypatch.setattr(patient, "HELD_BYTES", 100)
    file = PatientFile(tmp_path / "file")
    file.write(bytes(100))
    with pytest.raises(ResourceError):
        file.write(b"1")


def test_a_disk_that_fails_again_is_told_again(tmp_path, monkeypatch, caplog):
    disk = Disk(monkeypatch, 0)
    file = PatientFile(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        file.write("a")
        file.write("b")
        disk.room = 10
        file.write("c")
        disk.room = 0
        file.write("d")
    assert len(caplog.records) == 2
    disk.room = 10
    file.close()
    assert (tmp_path / "file").read_text() == "abcd"
