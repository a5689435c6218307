"""Where a run's time went, over all its lives.

``lives.jsonl`` in the run's folder is only ever appended to.  A life begins with
``{"began": TIME, "restored": STEP}``; then comes a line for every step, evaluation and save,
``{"step": STEP, "time": TIME, "spent": {PART: SECONDS}}``, with what was spent since the line
before.  A process that is killed loses no more than the line it had not written; the time until
the next life begins counts as ``restart``.  TIME is in seconds since 1970.
"""

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from lm.track.format import duration, percent

logger = logging.getLogger(__name__)

LIVES = "lives.jsonl"
PARTS = ("productive", "compile", "data_wait", "checkpoint", "evaluate", "restart", "lost")
"""``productive``: steps that count.  ``data_wait``: waits for data while no device worked.
``checkpoint``: saves, as long as they block.  ``restart``: start-up, restoring, and the time when
no process ran.  ``lost``: steps, waits and evaluations that had to be made again."""
MADE_AGAIN = ("productive", "data_wait", "evaluate")
PART_OF = {
    "start": "restart",
    "restore": "restart",
    "compile": "compile",
    "data": "data_wait",
    "step": "productive",
    "evaluate": "evaluate",
    "save": "checkpoint",
    "done": "restart",
}
"""The part to which a phase (``lm.train.activity``) belongs."""


class Account(NamedTuple):
    """Seconds of a run by part; they sum to its wall time."""

    parts: dict[str, float]
    last: float | None
    """When the last was heard of it; None: it has not begun, or it is finished."""


def account(lines: Iterable[Mapping[str, Any]]) -> Account:
    """What the lines of ``lives.jsonl`` add up to.

    After it is finished no time counts until another life begins, as when a run is made longer.
    """
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    made: list[tuple[int, Mapping[str, float]]] = []
    last: float | None = None
    for line in lines:
        if "began" in line:
            if last is not None:
                parts["restart"] += max(0.0, line["began"] - last)
            for _, spent in (entry for entry in made if entry[0] > line["restored"]):
                for part in MADE_AGAIN:
                    parts[part] -= spent.get(part, 0.0)
                    parts["lost"] += spent.get(part, 0.0)
            made = [entry for entry in made if entry[0] <= line["restored"]]
            last = line["began"]
            continue
        for part, seconds in line["spent"].items():
            parts[part] += seconds
        made.append((line["step"], line["spent"]))
        last = None if line.get("finished") else line["time"]
    return Account(parts, last)


def read_lives(path: Path) -> list[dict[str, Any]]:
    """The lines of the file that can be read; none if there is no file."""
    try:
        raw = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for text in raw if (line := _parsed(text)) is not None]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        if "began" in line:
            return {"began": float(line["began"]), "restored": int(line["restored"])}
        spent = {part: float(line["spent"][part]) for part in line["spent"] if part in PARTS}
        told = {"step": int(line["step"]), "time": float(line["time"]), "spent": spent}
        return told | ({"finished": True} if line.get("finished") else {})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # torn by a crash


class Lives:
    """The account of a run that is kept while it lives."""

    def __init__(self, path: Path, *, restored: int, began: float) -> None:
        """Another life begins, at a time in seconds since 1970, after a restored step."""
        line = {"began": began, "restored": restored}
        self.parts = account([*read_lives(path), line]).parts
        self.path = path
        self._file: TextIO | None = None
        try:
            self._file = path.open("a", buffering=1, encoding="utf-8")
            self._file.write("\n")  # the line before may be torn
        except OSError as error:
            self._give_up(error)
        self._write(line)

    def spend(
        self, step: int, spent: Mapping[str, float], *, time: float, finished: bool = False
    ) -> None:
        """Add the seconds of phases since the last time this was called.

        Args:
            step: the last one that they belong to.
            spent: seconds by phase.
            time: now, in seconds since 1970.
            finished: the run is over.
        """
        by_part: dict[str, float] = {}
        for phase, seconds in spent.items():
            by_part[PART_OF[phase]] = by_part.get(PART_OF[phase], 0.0) + seconds
        for part, seconds in by_part.items():
            self.parts[part] += seconds
        line = {"step": step, "time": time, "spent": by_part}
        self._write(line | ({"finished": True} if finished else {}))

    def shares(self) -> dict[str, float]:
        """The share of every part, as metrics."""
        return {f"goodput/{part}": share for part, share in shares(self.parts).items()}

    def close(self) -> None:
        """Close the file; nothing is written afterwards."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """An account is no reason to stop a run."""
        logger.warning("%s: cannot be written (%s)", self.path, error.strerror or error)
        self.close()


def shares(parts: Mapping[str, float]) -> dict[str, float]:
    """Each part of the whole, to four digits after the point; 0 of nothing."""
    whole = sum(parts.values())
    return {part: round(seconds / whole, 4) if whole else 0.0 for part, seconds in parts.items()}


def in_words(parts: Mapping[str, float]) -> str:
    """The shares of what took at least one in two hundred, ``productive`` first."""
    found = {part: share for part, share in shares(parts).items() if share >= 0.005}
    rest = sorted(found.items(), key=lambda entry: (entry[0] != "productive", -entry[1]))
    told = ", ".join(f"{part.replace('_', ' ')} {percent(share)}" for part, share in rest)
    return f"{told} of {duration(sum(parts.values()))}" if told else "nothing was done yet"
