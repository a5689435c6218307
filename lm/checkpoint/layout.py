"""Where the parts of a checkpoint stand, and which checkpoints are whole.

A run keeps its checkpoints as ``RUN/checkpoints/STEP/``, and a STEP folder is complete in itself,
also when copied elsewhere::

    state/            the arrays, as Orbax writes them
    data.json         the data position: sequences consumed, skipped ranges
    experiment.json   the run as one value
    record.json       commit, versions, command line, devices, counts
    tokenizer/        the files of the tokenizer
    digests.json      written last; it vouches for all of the above and makes the step whole

While a step is written its folder is called ``STEP.partial``, while it is deleted
``STEP.deleting``, and ``STEP.damaged`` once a restore found that it is not what was saved.  JSON
and plain files only: nothing here can hold code.  This module loads neither JAX nor Orbax.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from lm.errors import CheckpointError

CHECKPOINTS = "checkpoints"
STATE = "state"
DATA = "data.json"
EXPERIMENT = "experiment.json"
RECORD = "record.json"
TOKENIZER = "tokenizer"
DIGESTS = "digests.json"
UNFINISHED = ".tmp"
"""Ends the name of a file that is not whole yet, beside its place."""
PARTIAL = ".partial"
DELETING = ".deleting"
DAMAGED = ".damaged"
METADATA_BYTES = 2**26
"""What a file that is read whole may take; that of a state of 10,000 leaves takes 2 MB."""


def is_whole(step: Path) -> bool:
    """Whether a folder holds a finished checkpoint: its digests were written and can be read.

    Whether the rest is still what was saved is found by restoring it.
    """
    try:
        found = json.loads(_text(step / DIGESTS))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and (step / STATE).is_dir()


def steps(run: Path) -> list[Path]:
    """The whole checkpoints of a run (or of its ``checkpoints`` folder), oldest first."""
    return [step for step in _numbered(run) if is_whole(step)]


def unfinished(run: Path) -> list[Path]:
    """Folders that are named like a step but are no whole checkpoint, oldest first."""
    return [step for step in _numbered(run) if not is_whole(step)]


def newest(path: Path) -> Path:
    """The STEP folder that is meant: itself, or the newest whole one of a run.

    Raises:
        CheckpointError: nothing there, or nothing whole; the message says what was found.
    """
    if is_whole(path):
        return path
    if found := steps(path):
        return found[-1]
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint or run. Give the folder of a run, or one of its "
            "checkpoints/STEP folders."
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: a file, where a checkpoint is expected. Give the folder of a run, or one "
            "of its checkpoints/STEP folders."
        )
    if (path / STATE).is_dir() or (path / DIGESTS).exists():
        raise CheckpointError(
            f"{path}: not a whole checkpoint: {DIGESTS} {_lack(path)}, so it was never finished "
            "or only partly copied. Use another step, or copy it again."
        )
    halves = ", ".join(step.name for step in unfinished(path))
    holds = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    found_instead = f"its steps {halves} are unfinished" if halves else f"it holds {holds}"
    raise CheckpointError(
        f"{path}: no whole checkpoint here; {found_instead}. Give the folder of a run that saved "
        "at least once, or one of its checkpoints/STEP folders."
    )


def load_json(folder: Path, name: str) -> dict[str, Any]:
    """One of the JSON files of a checkpoint or run.

    Raises:
        CheckpointError: it is missing, far too large, or not a JSON object.
    """
    path = inside(folder, name)
    try:
        found = json.loads(_text(path))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}). Use another checkpoint, or copy "
            "this one again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not JSON ({error}). Use another checkpoint, or copy this one again."
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, found {type(found).__name__}. Use another "
            "checkpoint, or copy this one again."
        )
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: it is there whole or not at all, also after a power cut."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, as ``write_json`` does."""
    temporary = path.with_name(path.name + UNFINISHED)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def inside(folder: Path, name: str) -> Path:
    """The path of ``name`` in ``folder``.

    Raises:
        CheckpointError: the name, or a link on its way, leads out of the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"{folder}: it names {name!r}, which lies outside of it. Do not use this checkpoint."
        )
    return path


def _numbered(run: Path) -> list[Path]:
    folder = run / CHECKPOINTS if (run / CHECKPOINTS).is_dir() else run
    if not folder.is_dir():
        return []
    # Only the plain spelling of a number: "010" would be a second name for step 10.
    plain = [entry for entry in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", entry.name)]
    return sorted((entry for entry in plain if entry.is_dir()), key=lambda entry: int(entry.name))


def _text(path: Path) -> str:
    size = path.stat().st_size
    if not path.is_file():  # a pipe or a device may never end
        raise OSError("no regular file")
    if size > METADATA_BYTES:
        raise OSError(f"{size:,} bytes, where at most {METADATA_BYTES:,} are read")
    return path.read_text(encoding="utf-8")


def _lack(step: Path) -> str:
    return "cannot be read" if (step / DIGESTS).exists() else "is missing"
