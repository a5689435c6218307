"""Tells of a step or a wait for data that does not end, with what every thread is doing."""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lm.train.activity import Activity, Now

WATCHED = ("data", "step")
"""Compiling, restoring, evaluating and saving may take as long as they need."""
FACTOR = 20
"""So many times the median step is suspicious."""


class Watchdog:
    """Looks at what a process does, and reports what lasts too long: once, and when it doubles.

    Nothing is said before this life's first step is over, for that one may still compile; and
    nothing is ended here: that is the business of whoever supervises.
    """

    def __init__(
        self,
        activity: Activity,
        *,
        floor: float,
        who: str,
        file: Path,
        say: Callable[[str], None] = lambda text: _to_stderr(text),
    ) -> None:
        """Watch ``activity``.

        Args:
            activity: what the process does.
            floor: seconds that are never too long.
            who: rank, host and process, in words.
            file: where reports are kept as well.
            say: takes a report.
        """
        self.activity, self.floor, self.who, self.file, self.say = activity, floor, who, file, say
        self._seen: Now | None = None
        self._limit = 0.0

    def look(self) -> None:
        """Report if the present phase has lasted too long by now."""
        now, laps = self.activity.now, list(self.activity.laps)
        if now.phase not in WATCHED or not laps:
            return
        usual = float(np.median(laps))
        if now != self._seen:
            self._seen, self._limit = now, max(self.floor, FACTOR * usual)
        seconds = self.activity.clock() - now.since
        if seconds < self._limit:
            return
        self._limit = 2 * seconds
        doing = "the wait for the data of " if now.phase == "data" else ""
        self._report(
            f"stuck      {doing}step {now.step:,} has lasted {seconds:.0f} s on {self.who}; a step "
            f"takes {usual:.2g} s. What every thread does (kept in {self.file}):\n{stacks()}"
        )

    def _report(self, text: str) -> None:
        self.say(text)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(text)


def stacks() -> str:
    """The Python stack of every thread but this one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    told = ""
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            told += f"thread {names.get(ident, '?')} ({ident})\n"
            told += "".join(traceback.format_stack(frame))
    return told


def _to_stderr(text: str) -> None:
    os.write(2, text.encode())  # whole, whatever other threads print
