"""Only Orbax is hushed."""

import logging
import sys
from types import SimpleNamespace

import pytest
from absl import logging as absl_logging

from lm.checkpoint.quiet import hush_orbax


@pytest.fixture
def heard(monkeypatch):
    """What passes the hook that was there before."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    hush_orbax()
    return told


def unraisable(error, thing=None):
    return SimpleNamespace(exc_value=error, object=thing)


def coroutine_of(filename):
    return SimpleNamespace(cr_code=SimpleNamespace(co_filename=filename))


def test_what_orbax_abandons_is_dropped_and_nothing_else(heard):
    sys.unraisablehook(unraisable(RuntimeError("Event loop is closed")))
    sys.unraisablehook(unraisable(ValueError("x"), coroutine_of("/a/orbax/checkpoint/b.py")))
    assert heard == []
    others = [
        unraisable(RuntimeError("boom")),
        unraisable(RuntimeError("Event loop is closed"), object()),
        unraisable(ValueError("x"), coroutine_of("/a/other.py")),
    ]
    for other in others:
        sys.unraisablehook(other)
    assert heard == others


def test_the_hook_is_put_in_place_once(heard):
    hook = sys.unraisablehook
    hush_orbax()
    assert sys.unraisablehook is hook


def test_logs_of_others_pass(heard, caplog):
    with caplog.at_level(logging.WARNING):
        absl_logging.error("from this test")
        logging.getLogger("asyncio").error("Task exception was never retrieved: mine.py")
        logging.getLogger("asyncio").error("Task exception was never retrieved: /orbax/x.py")
        logging.getLogger("asyncio").error(
            "Future exception was never retrieved: in OCDBT database"
        )
        _log_error_raised_in("/site-packages/orbax/checkpoint/serialization.py")
    said = [entry.getMessage() for entry in caplog.records]
    assert said == ["from this test", "Task exception was never retrieved: mine.py"]


def _log_error_raised_in(path: str) -> None:
    """As asyncio tells of a future that gathers tasks: only its traceback names the file."""
    try:
        exec(compile("raise ValueError('no space')", path, "exec"))
    except ValueError:
        logging.getLogger("asyncio").exception("_GatheringFuture exception was never retrieved")
