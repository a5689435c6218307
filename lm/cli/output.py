"""Printing for people, and the same figures for machines."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.errors import ResourceError


@contextlib.contextmanager
def people(json_to: str | None) -> Iterator[None]:
    """Within it, what is printed goes to stderr if stdout belongs to JSON (``--json -``)."""
    if json_to == "-":
        with contextlib.redirect_stdout(sys.stderr):
            yield
    else:
        yield


def check_target(json_to: str, option: str = "--json") -> None:
    """Make sure that the figures can be written, before the work that they are of is done.

    Raises:
        ResourceError: the file cannot be written.
    """
    if json_to == "-":
        return
    path = Path(json_to)
    if path.is_dir():
        raise ResourceError(f"{option} {path}: a folder. Name a file in it.")
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "it is there, and may not be changed")
        probe = _beside(path)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error, option) from error


def write_json(json_to: str | None, value: Any, option: str = "--json") -> None:
    """The figures as JSON: to stdout (``-``), to a file in one step, or nowhere.

    Raises:
        ResourceError: the file cannot be written.
    """
    if json_to is None:
        return
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if json_to == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(json_to)
    temporary = _beside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _unwritable(path, error, option) from error


def _beside(path: Path) -> Path:
    """A name of this process's own, for what is not whole yet."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def _unwritable(path: Path, error: OSError, option: str) -> ResourceError:
    return ResourceError(
        f"{option} {path}: it cannot be written ({error.strerror or error}). Name another file."
    )
