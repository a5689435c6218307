"""The live line of a run, and the lines that stay.

On a terminal the line of the newest step is redrawn in place, and one stays every
``KEEP_SECONDS``.  Where output is a file or a pipe, only plain lines are written: the first, the
last, and one every ``PLAIN_SECONDS`` between.  Held-out results always stay.
"""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from lm.track.format import count, duration, gib, grouped, percent, rate

KEEP_SECONDS = 30.0
PLAIN_SECONDS = 10.0
REDRAW_SECONDS = 0.1

CLEAR = "\r\x1b[K"
"""To the start of the line, and erase it."""

LEAST_MISSED = ("gib", "grad", "lr", "seconds", "MFU")
"""Fields that a narrow terminal goes without, in this order."""


@runtime_checkable
class Stream(Protocol):
    """What a console writes to, as ``sys.stdout``."""

    def write(self, text: str, /) -> int:
        """Take a text."""
        ...

    def flush(self) -> None:
        """Show what was taken."""
        ...

    def isatty(self) -> bool:
        """Whether somebody looks at a terminal."""
        ...


class Console:
    """A tracker that speaks to whoever watches."""

    def __init__(
        self,
        *,
        total_steps: int,
        stream: Stream | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Write to ``stream`` (standard output if None); ``clock`` gives seconds."""
        self.total_steps, self.stream, self.clock = total_steps, stream or sys.stdout, clock
        self.live = self.stream.isatty()
        self.first: tuple[float, int] | None = None  # when the first step was told, and which
        self.kept_at = self.drawn_at = float("-inf")
        self.pending: str | None = None  # the newest line, if it does not stay yet
        self.explained_mfu = False

    def __call__(self, step: int, metrics: Mapping[str, int | float | None]) -> None:
        """Show a step's numbers; the line of a held-out result stays."""
        if "train/loss" in metrics:
            self._train(step, metrics)
        for text in evaluation_lines(step, metrics):
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line that stays, above the live line."""
        clear = CLEAR if self.live and self.pending else ""
        print(f"{clear}{text}", file=self.stream, flush=True)
        if self.live and self.pending:
            print(self.pending, end="", file=self.stream, flush=True)

    def flush(self) -> None:
        """Hand what was printed to the operating system."""
        self.stream.flush()

    def close(self) -> None:
        """Keep the newest line; the stream stays open."""
        self._keep()

    def _keep(self) -> None:
        if self.pending is not None:
            text, self.pending = self.pending, None
            print(f"{CLEAR if self.live else ''}{text}", file=self.stream, flush=True)
            self.kept_at = self.clock()

    def _train(self, step: int, metrics: Mapping[str, int | float | None]) -> None:
        now = self.clock()
        if self.first is None:
            self.first = (now, step)
        if metrics.get("throughput/mfu_causal", 0.0) is None and not self.explained_mfu:
            self.explained_mfu = True
            self.say("MFU is left out: this device has no published peak to compare with.")
        columns = shutil.get_terminal_size().columns - 1 if self.live else None
        line = train_line(step, self.total_steps, metrics, self._left(now, step), columns)
        self.pending = line
        last = step >= self.total_steps
        if last or now - self.kept_at >= (KEEP_SECONDS if self.live else PLAIN_SECONDS):
            self._keep()
        elif self.live and now - self.drawn_at >= REDRAW_SECONDS:
            print(f"{CLEAR}{line}", end="", file=self.stream, flush=True)
            self.drawn_at = now

    def _left(self, now: float, step: int) -> float | None:
        """Seconds to the end at the pace since the first step told, evaluations and all."""
        if self.first is None or step <= self.first[1]:
            return None
        began, start = self.first
        return (now - began) / (step - start) * max(self.total_steps - step, 0)


def train_line(
    step: int,
    total_steps: int,
    metrics: Mapping[str, int | float | None],
    seconds_left: int | float | None,
    columns: int | None = None,
) -> str:
    """``step 4 245/21 400 (19.8 %)  loss 3.0121  lr 2.0e-4 ...``; None: unlimited columns."""
    share = 100 * step / total_steps if total_steps else 100.0
    told = {"step": f"step {grouped(step)}/{grouped(total_steps)} ({share:.1f} %)"}
    shapes: dict[str, tuple[str, Callable[[int | float], str]]] = {
        "loss": ("train/loss", lambda x: f"loss {x:.4f}"),
        "lr": ("train/learning_rate", lambda x: f"lr {rate(x)}"),
        "grad": ("train/gradient_norm", lambda x: f"grad {x:.2f}"),
        "seconds": ("time/step_seconds", duration),
        "tokens": ("throughput/tokens_per_second", lambda x: f"{count(x)} tok/s"),
        "MFU": ("throughput/mfu_causal", lambda x: f"MFU {percent(x)}"),
        "gib": ("memory/peak_gib", gib),
    }
    for field, (name, shape) in shapes.items():
        value = metrics.get(name)
        if value is not None:
            told[field] = shape(value)
    if seconds_left is not None and step < total_steps:
        told["left"] = f"ETA {duration(seconds_left)}"
    line = "  ".join(told.values())
    for field in LEAST_MISSED:
        if columns is None or len(line) <= columns:
            return line
        told.pop(field, None)
        line = "  ".join(told.values())
    return line[:columns]


def evaluation_lines(step: int, metrics: Mapping[str, int | float | None]) -> list[str]:
    """One line for each set of held-out results: ``held out  step 4 000  loss 2.9112  ...``."""
    sets: dict[str, list[str]] = {}
    for name, value in metrics.items():
        if name.startswith("eval/") and value is not None:
            key, _, measure = name.removeprefix("eval/").rpartition("/")
            words = measure.replace("bits_per_byte", "bits/byte").replace("_", " ")
            sets.setdefault(key, []).append(f"{words} {value:.4g}")
    return [f"{key}  step {grouped(step)}  {'  '.join(told)}" for key, told in sets.items()]
