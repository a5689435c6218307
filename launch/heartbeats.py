"""What the processes of a run say of themselves: ``RANK.json`` in the folder of LM_HEARTBEATS."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple, cast


class Beat(NamedTuple):
    """A process's own words; the step is None before it knows one."""

    rank: int | None = None
    host: str | None = None
    step: int | None = None
    phase: str | None = None


class Pulse:
    """The heartbeats of one process.

    Age is the time since this machine saw the file change, so that no clock has to be right.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Watch the files in ``folder`` that ``name`` (a pattern) matches."""
        self.beat = Beat()
        self.seen: float | None = None
        self._folder, self._name = folder, name
        self._stamp: tuple[int, int] | None = None

    def look(self) -> None:
        """Read the newest heartbeat, where there is one."""
        for path in self._folder.glob(self._name):
            try:
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_ino)
                if stamp == self._stamp:
                    continue
                beat = _read(path)
            except OSError:
                continue  # replaced between the two; the next look finds it
            self._stamp, self.seen = stamp, time.monotonic()
            if beat is not None:
                self.beat = beat


def _read(path: Path) -> Beat | None:
    try:
        given: Any = json.loads(path.read_bytes())
    except ValueError:
        return None
    if not isinstance(given, dict):
        return None
    said = cast("dict[str, Any]", given)

    def number(name: str) -> int | None:
        value = said.get(name)
        return value if isinstance(value, int) else None

    def word(name: str) -> str | None:
        value = said.get(name)
        return value if isinstance(value, str) else None

    return Beat(number("rank"), word("host"), number("step"), word("phase"))
