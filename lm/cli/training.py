"""What ``lm train`` does once its config is known to be right: resume or begin, train, report."""

import argparse
import contextlib
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from lm import assemble
from lm import run as runs
from lm.experiment import Experiment
from lm.track.format import count, duration
from lm.train import loop
from lm.train.program import Program


def train(
    arguments: argparse.Namespace,
    experiment: Experiment,
    program: Program,
    started: float,
    say: runs.Say,
) -> dict[str, Any]:
    """Train to the end or until asked to stop; returns the run's figures.

    ``started``, of the monotonic clock, is when ``--stop-after`` began to count.
    """
    run = runs.Run(experiment, program, Path(arguments.runs), jax.devices())
    run.check_memory()
    for line in run.check(restart=arguments.restart):
        say(f"changed    {line} (the run that is resumed)")
    made = None if arguments.restart else run.finished()
    if made is not None:
        return _finished_before(run, made, say)
    if arguments.profile is not None:
        run.check_profile(arguments.profile, restart=arguments.restart)
    with contextlib.closing(run):
        run.claim()
        ground = assemble.ground(experiment, say)
        with _stop_signals(started, arguments.stop_after) as stop:
            job, state = run.begin(
                ground, restart=arguments.restart, say=say, profiled=arguments.profile
            )
            began, first = time.perf_counter(), int(state.step)
            state, step = loop.run(job._replace(stop_requested=stop), state)
            seconds = time.perf_counter() - began
        run.finish_saving()
        figures = run.figures(step)
        if step < experiment.training.steps:
            say(
                f"stopped    at step {step:,} of {experiment.training.steps:,}; saved. Go on with: "
                f"{_again(arguments)}"
            )
        else:
            fast = figures["tokens_per_second"]
            told = f", {count(fast)} tokens/s (median)" if fast else ""
            say(f"finished   {step - first:,} steps in {duration(seconds)}{told}")
            run.show_samples(say)
        report = run.report(step)
    if report is not None:
        say(f"report     {report}")
    say(f"checkpoint {figures['checkpoint']}")
    return figures


def _finished_before(run: runs.Run, step: int, say: Any) -> dict[str, Any]:
    say(
        f"run        {run.folder} is finished: step {step:,}. Train longer with a larger "
        "--training.steps, or begin anew with --restart."
    )
    return run.figures(step)


def _again(arguments: argparse.Namespace) -> str:
    words = ["lm", "train", arguments.config, *arguments.words]
    if arguments.runs != "runs":
        words += ["--runs", arguments.runs]
    if arguments.name:
        words += ["--name", arguments.name]
    return shlex.join(words)


@contextlib.contextmanager
def _stop_signals(started: float, stop_after: float | None) -> Iterator[Callable[[int], bool]]:
    """Gives what says, after a step, whether to stop: Ctrl-C, SIGTERM, or the time is up.

    A second signal stops at once.
    """
    asked = threading.Event()
    end = float("inf") if stop_after is None else started + stop_after
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        if asked.is_set():
            signal.signal(number, before[number])
            signal.raise_signal(number)
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield lambda step: runs.agreed(asked.is_set() or time.monotonic() >= end, step)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
