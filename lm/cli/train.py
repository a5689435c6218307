"""``lm train``: from a config to a trained model."""

import argparse
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from lm import assemble
from lm import run as runs
from lm.cli.output import people, write_json
from lm.cli.overrides import load_experiment, override
from lm.config import diff
from lm.experiment import Experiment
from lm.parallel import distributed
from lm.parallel.mesh import describe
from lm.track.format import count, duration, grouped
from lm.train import loop


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Train; returns the exit code."""
    with people(arguments.json):
        figures = _train(arguments, rest)
    write_json(arguments.json, figures)
    return 0


def _train(arguments: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    given = load_experiment(arguments.config)
    chosen = override(given, rest, prog=f"lm train {arguments.config}")
    chosen = runs.with_name(chosen, arguments.name)
    distributed.start()
    say = print if jax.process_index() == 0 else lambda *_: None
    _tell_changes(given, chosen, say)
    devices = jax.devices()
    run = runs.Run(chosen, Path(arguments.runs), devices)
    run.check_memory()
    for line in run.check(restart=arguments.restart):
        say(f"changed    {line} (the run that is resumed)")
    _tell_size(run, say)
    if not arguments.restart and run.finished():
        return _finished_before(run, say)
    ground = assemble.ground(chosen, say)
    began = time.perf_counter()
    with _stop_signals() as stop, contextlib.closing(run):
        job, state = run.begin(ground, restart=arguments.restart, say=say)
        first = int(state.step)
        state, step = loop.run(job._replace(stop_requested=stop), state)
        jax.block_until_ready(state.step)
    seconds = time.perf_counter() - began
    if step < chosen.training.steps:
        say(
            f"stopped    at step {step:,} of {chosen.training.steps:,}; saved. Go on with: "
            f"lm train {arguments.config}{_again(arguments, rest)}"
        )
    else:
        say(f"finished   {step - first:,} steps in {duration(seconds)}")
        run.show_samples(say)
    figures = run.figures(step)
    report = run.report(step)
    if report is not None:
        say(f"report     {report}")
    say(f"checkpoint {figures['checkpoint']}")
    return figures


def _tell_changes(given: Experiment, chosen: Experiment, say: Any) -> None:
    changes = [f"{path} {old} -> {new}" for path, old, new in diff(given, chosen)]
    noun = "change" if len(changes) == 1 else "changes"
    told = f"{len(changes)} {noun}: {', '.join(changes)}" if changes else "as the file says"
    say(f"{chosen.name:<10} {told}")


def _tell_size(run: runs.Run, say: Any) -> None:
    e, t = run.experiment, run.experiment.training
    say(
        f"model      decoder, {count(run.parameters)} parameters, {len(e.model.blocks)} blocks of "
        f"width {e.model.width}, {e.execution.compute_dtype} compute"
    )
    say(
        f"batch      {t.sequences} x {t.length} = {count(t.tokens_per_step)} tokens a step; "
        f"{grouped(t.steps)} steps = {count(t.steps * t.tokens_per_step)} tokens"
    )
    say(f"mesh       {describe(run.program.placed.mesh)} ({jax.process_count()} process"
        f"{'es' if jax.process_count() > 1 else ''})")  # fmt: skip


def _finished_before(run: runs.Run, say: Any) -> dict[str, Any]:
    say(
        f"run        {run.folder} is finished: step {run.experiment.training.steps:,}. Train "
        "longer with a larger --training.steps, or begin anew with --restart."
    )
    return run.figures(run.experiment.training.steps)


def _again(arguments: argparse.Namespace, rest: list[str]) -> str:
    words = list(rest)
    if arguments.runs != "runs":
        words += ["--runs", arguments.runs]
    if arguments.name:
        words += ["--name", arguments.name]
    return "".join(f" {w}" for w in words)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Any]:
    """Within it, the first Ctrl-C or SIGTERM asks for a stop, and a second one stops at once."""
    asked = threading.Event()
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        if asked.is_set():
            signal.signal(number, before[number])
            signal.raise_signal(number)
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield lambda step: runs.agreed(asked.is_set(), step)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
