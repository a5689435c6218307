"""What this process does now: told by the run and its loop, read by whoever watches them."""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

Phase = Literal["start", "compile", "restore", "data", "step", "evaluate", "save", "done"]
LAPS = 101
"""As many of the last steps say how long one takes."""


class Now(NamedTuple):
    """What is done."""

    phase: Phase
    step: int
    """The step that is made, or that was made last where the phase is no step's."""
    since: float
    """When it began, in seconds of the clock."""


class Activity:
    """The present phase of a process, how long its steps take, and the seconds of every phase.

    One thread tells; any may read ``now`` and ``laps``.
    """

    def __init__(
        self, began: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin in the phase ``start``, at a time of ``clock`` (now if None)."""
        self.clock = clock
        self.began = clock() if began is None else began
        self.now = Now("start", 0, self.began)
        self.laps: deque[float] = deque(maxlen=LAPS)
        """Seconds from step to step, where nothing else came between; not of the first, which may
        still compile."""
        self._lap: float | None = None
        self._warm = False
        self._counted = self.began
        self._spent: dict[str, float] = {}

    def __call__(self, phase: Phase, step: int, *, hidden: bool = False) -> None:
        """Another phase begins.

        Args:
            phase: what is done from now on.
            step: at which step.
            hidden: the wait for data that ends now kept no device waiting, and counts as ``step``.
        """
        now, before = self.clock(), self.now.phase
        self._count("step" if hidden and before == "data" else before, now)
        if phase == "data":
            if self._lap is not None:
                self.laps.append(now - self._lap)
            self._lap, self._warm = (now if self._warm else None), True
        elif phase != "step":
            self._lap = None
        self.now = Now(phase, step, now)

    def take(self) -> dict[str, float]:
        """The seconds of every phase since they were last taken."""
        self._count(self.now.phase, self.clock())
        spent, self._spent = self._spent, {}
        return spent

    def _count(self, phase: Phase, now: float) -> None:
        self._spent[phase] = self._spent.get(phase, 0.0) + now - self._counted
        self._counted = now
