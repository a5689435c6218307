"""``lm doctor``: is this machine, or pod, fit to train?  One screen, and what to mend."""

import argparse
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.cli.output import people, write_json
from lm.doctor.check import Check
from lm.doctor.examination import Asked, Findings, look
from lm.track.format import duration

WIDTH = 100
LAST = 0.5
"""Seconds."""
INDENT = 17
"""Columns of a line's name and mark."""


def run(arguments: argparse.Namespace) -> int:
    """Examine; returns the exit code: 1 where something is wrong."""
    began = time.perf_counter()
    data = None if arguments.data is None else Path(arguments.data)
    asked = Asked(arguments.experiment, Path(arguments.runs), data, arguments.seconds)
    before = signal.signal(signal.SIGTERM, _interrupt)  # so that no file is left behind
    try:
        findings = look(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
    seconds = time.perf_counter() - began
    if findings.speaks:
        with people(arguments.json):
            for line in page(findings, seconds):
                print(line)
        write_json(arguments.json, to_json(findings, seconds))
    code = 0 if findings.ok else 1
    if findings.hangs:
        sys.stdout.flush()
        sys.stderr.flush()
        if findings.speaks:
            time.sleep(LAST)  # the others end first: they would call the end of this one a crash
        os._exit(code)
    return code


def page(findings: Findings, seconds: float) -> Iterator[str]:
    """The screen."""
    for check in findings.checks:
        yield from _lines(check)
    wrong = [check.name for check in findings.checks if check.status == "WRONG"]
    warned = [check.name for check in findings.checks if check.status == "warn"]
    told = [f"{len(names)} {word}: {', '.join(names)}"
            for names, word in ((wrong, "wrong"), (warned, "to look at")) if names]  # fmt: skip
    verdict = "; ".join(told) or "all is well"
    many = f"{findings.processes} process{'es' if findings.processes > 1 else ''}"
    yield f"{'doctor':<11}{verdict} ({many}, {duration(seconds)})"


def to_json(findings: Findings, seconds: float) -> dict[str, Any]:
    """The same as figures."""
    return {
        "ok": findings.ok,
        "processes": findings.processes,
        "seconds": seconds,
        "checks": [
            {
                "name": check.name,
                "status": check.status,
                "said": check.said,
                "figures": dict(check.figures),
                "mend": check.mend,
            }
            for check in findings.checks
        ],
    }


def _lines(check: Check) -> Iterator[str]:
    head = f"{check.name:<11}{check.status:<6}"
    yield from _wrapped(check.said, head, " " * INDENT)
    if check.mend:
        yield from _wrapped(check.mend, " " * INDENT + "-> ", " " * (INDENT + 3))


def _wrapped(text: str, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False
    )


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
