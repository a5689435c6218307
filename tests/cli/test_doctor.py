"""One screen, an exit code, JSON; and whatever is wrong, no traceback and no trace."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from lm.cli.main import main
from lm.doctor import collectives, devices, loading, storage

TINY = str(Path(__file__).parents[2] / "configs" / "smoke" / "tiny.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "PAYLOAD", storage.BLOCK)
    monkeypatch.setitem(collectives.PAYLOAD, "cpu", 2**14)
    measure = loading.batch_seconds
    monkeypatch.setattr(loading, "batch_seconds", lambda loader, seconds: measure(loader, 0.1))
    monkeypatch.setattr(devices, "present", lambda root: [])
    monkeypatch.chdir(tmp_path)


def doctor(*words: str) -> tuple[int, dict]:
    code = main(["doctor", *words, "--json", "found.json"])
    found = json.loads(Path("found.json").read_text())
    Path("found.json").unlink()
    return code, found


def marks(found: dict) -> dict[str, str]:
    return {check["name"]: check["status"] for check in found["checks"]}


def test_one_screen_tells_of_everything_and_leaves_no_trace(tmp_path, capsys):
    code, found = doctor(TINY, "--parallel.mesh.tensor", "2")
    lines = capsys.readouterr().out.splitlines()
    assert code == 0, lines
    assert found["ok"]
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    expected = [
        "versions",
        "code",
        "devices",
        "mesh",
        "fsdp",
        "tensor",
        "host",
        "storage",
        "loader",
    ]
    assert list(marks(found)) == expected
    assert set(marks(found).values()) <= {"ok", "warn"}
    for check in found["checks"]:
        assert check["said"]
        assert (check["mend"] is None) == (check["status"] == "ok")
    assert found["checks"][4]["figures"]["size"] == 4
    assert list(tmp_path.iterdir()) == []


def test_without_a_config_all_devices_stand_on_one_axis(capsys):
    code, found = doctor()
    assert code == 0, capsys.readouterr().out
    assert found["checks"][4]["figures"]["size"] == 8


def test_json_alone_is_on_stdout(capsys):
    assert main(["doctor", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["ok"] is True
    assert "versions" in said.err


def test_a_mesh_that_does_not_fit_is_told_in_the_words_of_training(capsys):
    code, found = doctor(TINY, "--parallel.mesh.data", "3")
    assert code == 1
    assert main(["train", TINY, "--parallel.mesh.data", "3"]) == 2
    mend = next(check["mend"] for check in found["checks"] if check["name"] == "mesh")
    assert mend in capsys.readouterr().err
    assert marks(found)["fsdp"] == "ok", "the devices are looked at all the same"


@pytest.mark.parametrize("words", [["nowhere.py"], [TINY, "--training.step", "3"], ["--data"]])
def test_a_mistake_of_words_is_a_paragraph(words, capsys):
    assert main(["doctor", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_wrong_sums_storage_and_data_are_each_told_at_once(monkeypatch, capsys):
    right = collectives.all_reduce
    monkeypatch.setattr(collectives, "all_reduce", lambda x, axis: right(x, axis) + 1)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    code, found = doctor("--data", "gone")
    said = capsys.readouterr().out
    assert code == 1
    assert found["ok"] is False
    wrong = [name for name, mark in marks(found).items() if mark == "WRONG"]
    assert wrong == ["fsdp", "storage", "loader"]
    assert "3 wrong: fsdp, storage, loader" in said
    assert len(said.splitlines()) <= 24


@pytest.mark.parametrize("hung", ["storage", "sums"])
def test_what_hangs_is_ended_and_the_process_with_it(monkeypatch, capsys, hung):
    monkeypatch.setattr("lm.doctor.check.LEAST_SECONDS", 0.2)
    release, ended = threading.Event(), []
    monkeypatch.setattr("lm.doctor.examination.storage.facts" if hung == "storage"
                        else "lm.doctor.examination.collectives.facts",
                        lambda *_: release.wait(60))  # fmt: skip
    monkeypatch.setattr(os, "_exit", ended.append)
    code, found = doctor("--seconds", "5")
    release.set()
    assert ended == [1]
    assert code == 1
    assert marks(found)[hung] == "WRONG"
    assert marks(found)["loader"] in ("ok", "warn"), "the rest is looked at all the same"
