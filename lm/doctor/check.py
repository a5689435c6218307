"""What a check found, and how the checks are made: measured everywhere, judged in one place."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lm.doctor.exchange import Exchange
from lm.errors import UserError

Status = Literal["ok", "warn", "WRONG"]
LEAST_SECONDS = 3.0
"""So long may any part take, however late it is."""


class Check(NamedTuple):
    """A line of the screen."""

    name: str
    status: Status
    said: str
    """What was found, with units."""
    figures: Mapping[str, Any] = {}
    """The same for machines; JSON can hold it."""
    mend: str | None = None
    """One sentence on what to do, where it is not ok."""


class Part(NamedTuple):
    """A thing to look at: every process measures it, process 0 judges what all have told."""

    name: str
    measure: Callable[[], Any]
    """Gives what JSON can hold."""
    judge: Callable[[Mapping[int, Any]], Iterable[Check]]
    """Rank -> what that process measured."""
    seconds: float
    """After so long it is left behind."""
    mend: str
    """What to do where it fails or does not end."""


class LateError(Exception):
    """It did not end in time."""


class SkippedError(Exception):
    """It cannot be done, since something before it went wrong."""


class Patience:
    """Runs work in threads, until it ends or its time is up."""

    def __init__(self, seconds: float) -> None:
        """All together may take ``seconds``, and each a little where that is used up."""
        self.end = time.monotonic() + seconds
        self.stuck: list[str] = []
        """What did not end; its threads still wait for something."""

    def run(self, name: str, work: Callable[[], Any], seconds: float) -> Any:
        """The result of ``work``, or its exception.

        Raises:
            LateError: it takes longer than it may; the thread is left behind.
        """
        allowed = max(min(seconds, self.end - time.monotonic()), LEAST_SECONDS)
        ended = threading.Event()
        results: list[Any] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                failures.append(error)
            ended.set()

        threading.Thread(target=run, name=name, daemon=True).start()
        if not ended.wait(allowed):
            self.stuck.append(name)
            raise LateError(f"did not end in {allowed:.0f} s")
        if failures:
            raise failures[0]
        return results[0]


def examine(parts: Sequence[Part], exchange: Exchange, patience: Patience) -> list[Check]:
    """Look at every part in turn; what was found, on process 0."""
    checks: list[Check] = []
    for part in parts:
        told = _measured(part, patience)
        every = exchange.gather(part.name, told, part.seconds + LEAST_SECONDS)
        if exchange.rank == 0:
            checks += _judged(part, every, exchange)
    return checks


def _measured(part: Part, patience: Patience) -> dict[str, Any]:
    """What a part measures here, or in one word how it failed; never an exception."""
    try:
        return {"found": patience.run(part.name, part.measure, part.seconds)}
    except SkippedError as skipped:
        return {"skipped": str(skipped)}
    except LateError as late:
        return {"failed": str(late), "mend": part.mend}
    except UserError as error:
        return {"failed": "refused, as lm train would", "mend": " ".join(str(error).split())}
    except Exception as error:
        return {"failed": _short(error), "mend": part.mend}


def _judged(
    part: Part, every: Mapping[int, dict[str, Any] | None], exchange: Exchange
) -> list[Check]:
    """The lines of a part, of which some processes may have told nothing."""
    lost = [rank for rank, told in every.items() if told is None]
    answered = {rank: told for rank, told in every.items() if told is not None}
    failed = {rank: told for rank, told in answered.items() if "failed" in told}
    skipped = [told["skipped"] for told in answered.values() if "skipped" in told]
    found = {rank: told["found"] for rank, told in answered.items() if "found" in told}
    checks: list[Check] = []
    if lost:
        who = exchange.names(lost)
        mend = "Look at its last lines: it died, froze, or was never started there."
        checks.append(Check(part.name, "WRONG", f"no answer from {who}", {"silent": lost}, mend))
    if failed:
        first = failed[min(failed)]
        where = f"{exchange.names(failed)}: " if exchange.count > 1 else ""
        figures = {"failed": {str(rank): told["failed"] for rank, told in failed.items()}}
        said = f"{where}{first['failed']}"
        checks.append(Check(part.name, "WRONG", said, figures, first["mend"]))
    if skipped and not checks:
        mend = "Mend what is WRONG above, and ask again."
        checks.append(Check(part.name, "warn", f"not looked at: {skipped[0]}", {}, mend))
    if not checks and found:
        try:
            checks += part.judge(found)
        except Exception as error:
            mend = "This is a bug of ours: report it with this line."
            checks.append(Check(part.name, "WRONG", _short(error), {}, mend))
    return checks


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")[:300]
