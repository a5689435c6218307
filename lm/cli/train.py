"""``lm train``: from a config to a trained model."""

import argparse
import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from lm import assemble
from lm import run as runs
from lm.cli.output import people, write_json
from lm.config import diff
from lm.experiment import Experiment
from lm.parallel import distributed
from lm.parallel.agree import Agreement
from lm.parallel.mesh import describe
from lm.track.format import count, duration, grouped
from lm.track.goodput import in_words
from lm.train import maintenance
from lm.train.program import Program
from lm.train.stopping import Stop, signals


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    with people(arguments.json):
        figures = _train(arguments)
    distributed.finish()
    if jax.process_index() == 0:
        write_json(arguments.json, figures)
    return 0


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    program: Program = arguments.program
    chosen = _chosen(arguments)
    say = print if jax.process_index() == 0 else lambda *_: None
    _tell_changes(arguments.given, chosen, say)
    run = runs.Run(chosen, program, Path(arguments.runs), jax.devices(), arguments.started)
    run.check_memory()
    for line in run.check(restart=arguments.restart):
        say(f"changed    {line} (the run that is resumed)")
    _tell_size(run, say)
    made = None if arguments.restart else run.finished()
    if made is not None:
        return _finished_before(run, made, say)
    if arguments.profile is not None:
        run.check_profile(arguments.profile, restart=arguments.restart)
    with contextlib.closing(run):
        run.claim()
        run.keep_watch()
        ground = assemble.ground(chosen, say)
        with _stops(run, arguments.started, arguments.stop_after, say) as stop:
            job, state = run.begin(
                ground, restart=arguments.restart, say=say, profiled=arguments.profile
            )
            began, first = time.perf_counter(), int(state.step)
            state, step = run.train(job._replace(stop_requested=stop), state)
            seconds = time.perf_counter() - began
            run.finish_saving(step)
        figures = run.figures(step)
        run.tell_bad_numbers(say)
        if step < chosen.training.steps:
            saved = "not saved, for its numbers are bad" if run.due else "saved"
            say(
                f"stopped    at step {step:,} of {chosen.training.steps:,}; {saved}. Go on with: "
                f"{_again(arguments)}"
            )
        else:
            fast = figures["tokens_per_second"]
            told = f", {count(fast)} tokens/s (median)" if fast else ""
            say(f"finished   {step - first:,} steps in {duration(seconds)}{told}")
            run.show_samples(say)
        report = run.report(step)
    say(f"goodput    {in_words(figures['goodput'])}")
    if report is not None:
        say(f"report     {report}")
    say(f"checkpoint {figures['checkpoint']}")
    return figures


def _chosen(arguments: argparse.Namespace) -> Experiment:
    """The config with the options that stand for parts of it."""
    chosen: Experiment = arguments.experiment
    if arguments.name is not None:
        chosen = replace(chosen, name=arguments.name)
    if arguments.on_spike is not None:
        chosen = replace(chosen, guard=replace(chosen.guard, on_spike=arguments.on_spike))
    return chosen


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
    for chosen in assemble.attention(e, run.program.placed):
        say(f"attention  {chosen}")
    say(f"mesh       {describe(run.program.placed.mesh)} ({jax.process_count()} process"
        f"{'es' if jax.process_count() > 1 else ''})")  # fmt: skip


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
    if arguments.on_spike:
        words += ["--on-spike", arguments.on_spike]
    return shlex.join(words)


@contextlib.contextmanager
def _stops(
    run: runs.Run, started: float, stop_after: float | None, say: Callable[[str], None]
) -> Iterator[Callable[[int], bool]]:
    """Gives what says, after a step, whether to stop: a signal, a notice, or the time is up.

    All processes stop after the same step, whichever of them was asked.  A second signal ends
    this one at once, and the others with it.
    """
    end = math.inf if stop_after is None else started + stop_after
    stop = Stop(lambda reason: say(f"stopping   {reason}: saving; a second signal stops at once"))
    agreed = Agreement()

    def asked(_: int) -> bool:
        if time.monotonic() + run.stop_seconds() >= end:
            stop.ask("the time is up")
        return agreed(stop.reason is not None)

    maintenance.watch(stop.ask)
    with signals(stop, distributed.leave):
        yield asked
