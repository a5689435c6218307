"""``metrics.jsonl``: one JSON object a line, appended as the run goes.

JSON has no NaN and no infinity.  Such a number is written as null, and an extra field says what
it was: ``{"step": 7, "train/loss": null, "nonfinite": {"train/loss": "nan"}}``; ``read`` puts it
back.  A null without that field is a number that had no meaning, as MFU on a CPU.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from lm.errors import ResourceError
from lm.track.patient import PatientFile

logger = logging.getLogger(__name__)


class JsonLines:
    """A tracker that appends to a file, one line a step."""

    def __init__(self, path: Path, *, restored_step: int = 0):
        """Open the file for appending, cut to what was known after ``restored_step`` updates.

        Raises:
            ResourceError: the file cannot be written.
        """
        self.path = path
        try:
            cut(path, restored_step)
            self.file = PatientFile(path)
        except OSError as error:
            _refuse(path, error)

    def __call__(self, step: int, metrics: Mapping[str, int | float | None]) -> None:
        """Append one line, or hold it back while the disk takes none.

        Raises:
            ResourceError: the disk took none for very long.
        """
        self.file.write(line(step, metrics))

    def flush(self) -> None:
        """Return once every line is on the disk, if it takes any."""
        self.file.flush()

    def close(self) -> None:
        """Flush and close the file; a second time does nothing.

        Raises:
            ResourceError: the disk does not take the last lines.
        """
        self.file.close()


def line(step: int, metrics: Mapping[str, int | float | None]) -> str:
    """One line of the file, with its end."""
    entry: dict[str, Any] = {"step": int(step)}
    lost: dict[str, str] = {}
    for name, value in metrics.items():
        number = None if value is None else value if isinstance(value, int) else float(value)
        if number is not None and not math.isfinite(number):
            lost[name], number = str(number), None
        entry[name] = number
    if lost:
        entry["nonfinite"] = lost
    return json.dumps(entry, allow_nan=False) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    """Every line of the file in order, non-finite numbers put back; empty if there is none.

    The last line may be torn by a crash: it is left out.  So is any other that cannot be read,
    with a warning.
    """
    entries: list[dict[str, Any]] = []
    for _, entry in _entries(path):
        for name, text in entry.pop("nonfinite", {}).items():
            entry[name] = float(text)
        entries.append(entry)
    return entries


def cut(path: Path, step: int) -> None:
    """Drop the lines beyond ``step``, and any torn one; whole or not at all."""
    if not path.exists():
        return
    kept = b"".join(raw + b"\n" for raw, entry in _entries(path) if entry["step"] <= step)
    if len(kept) == path.stat().st_size:
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _entries(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each whole line as bytes and as what it says."""
    if not path.exists():
        return
    *lines, rest = path.read_bytes().split(b"\n")
    for number, raw in enumerate(lines, start=1):
        entry = _parse(raw)
        if entry is None:
            logger.warning("%s: line %d cannot be read and is left out", path, number)
        else:
            yield raw, entry
    if rest and (entry := _parse(rest)) is not None:  # only its line end was lost
        yield rest, entry


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(raw)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def _refuse(path: Path, error: OSError) -> NoReturn:
    raise ResourceError(
        f"{path}: cannot be written ({error.strerror or error}). Free some disk or choose another "
        "folder with --runs; the run goes on from its last checkpoint."
    ) from error
