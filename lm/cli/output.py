"""Printing for people, and the same figures for machines."""

import contextlib
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


def write_json(json_to: str | None, value: Any) -> None:
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
    try:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ResourceError(
            f"{path}: the figures cannot be written ({error.strerror}). Give --json another path."
        ) from error
