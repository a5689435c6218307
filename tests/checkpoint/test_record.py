import json
import subprocess
import sys

from lm.checkpoint import record
from lm.checkpoint.record import Record, make_record
from lm.config import from_plain, to_plain


def test_a_record_names_versions_devices_and_command_and_goes_through_json():
    made = make_record(step=3, tokens=100, parameters=7)
    assert made.versions["jax"]
    assert made.devices == "8 x cpu"
    assert made.argv == tuple(sys.argv)
    assert from_plain(Record, json.loads(json.dumps(to_plain(made)))) == made


def test_without_git_there_is_no_commit(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert record._git("rev-parse", "HEAD") is None
