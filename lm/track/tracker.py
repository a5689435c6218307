"""Where a run's numbers go: the contract, the choice, and several trackers as one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from lm.errors import ConfigError, UserError
from lm.track.console import Console, Stream
from lm.track.jsonl import JsonLines
from lm.track.tensorboard import TensorBoard


@runtime_checkable
class Tracker(Protocol):
    """What takes the numbers of a step.  Only process 0 has trackers."""

    def __call__(self, step: int, metrics: Mapping[str, int | float | None]) -> None:
        """Take the numbers as they were after ``step`` updates.

        Plain numbers by name, such as ``train/loss``; None where one has no meaning (MFU on a
        CPU).
        """
        ...

    def flush(self) -> None:
        """Return once all that was taken would survive a crash."""
        ...

    def close(self) -> None:
        """Flush and let go of files; nothing is taken afterwards."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trackers:
    """Which trackers a run has."""

    console: bool = True
    """The live line."""
    jsonl: bool = True
    """``metrics.jsonl`` in the run's folder, from which the report is drawn."""
    tensorboard: bool = True
    """Event files in ``tensorboard/`` in the run's folder."""
    stuck_seconds: float = 300.0
    """A step, or a wait for data, is told of with all stacks if it lasts longer than this and than
    20 median steps."""

    def __post_init__(self) -> None:
        """A time is positive.

        Raises:
            ConfigError: one that is not.
        """
        if not self.stuck_seconds > 0:
            raise ConfigError(
                f"tracking.stuck_seconds: {self.stuck_seconds} must be above 0; inf never tells."
            )

    def build(
        self, run: Path, *, restored_step: int, total_steps: int, stream: Stream | None = None
    ) -> "Fanout":
        """The chosen trackers of a run that goes on after ``restored_step`` (0: from the start).

        What an earlier life of the run tracked beyond that step is cut.

        Args:
            run: the run's folder, which exists.
            restored_step: updates already made.
            total_steps: updates of the whole run, for the share done and the time left.
            stream: where the console writes; standard output if None.

        Raises:
            ResourceError: a file in the run's folder cannot be written.
        """
        chosen: list[Tracker] = []
        try:
            if self.jsonl:
                chosen.append(JsonLines(run / "metrics.jsonl", restored_step=restored_step))
            if self.tensorboard:
                chosen.append(TensorBoard(run / "tensorboard", restored_step=restored_step))
        except UserError:
            Fanout(tuple(chosen)).close()
            raise
        console = Console(total_steps=total_steps, stream=stream) if self.console else None
        return Fanout(tuple(chosen), console)


class Fanout:
    """Several trackers as one, the console last."""

    def __init__(self, trackers: tuple[Tracker, ...], console: Console | None = None):
        self.trackers = trackers if console is None else (*trackers, console)
        self.console = console

    def __call__(self, step: int, metrics: Mapping[str, int | float | None]) -> None:
        """Hand the numbers to every tracker."""
        for tracker in self.trackers:
            tracker(step, metrics)

    def say(self, text: str) -> None:
        """Print a line that stays, above the live line; nothing without a console."""
        if self.console is not None:
            self.console.say(text)

    def flush(self) -> None:
        """Flush every tracker."""
        for tracker in self.trackers:
            tracker.flush()

    def close(self) -> None:
        """Close every tracker."""
        for tracker in self.trackers:
            tracker.close()
