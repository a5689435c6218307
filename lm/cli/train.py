"""``lm train``: from a config to a trained model.

What can be wrong of a config's shapes, mesh and batch is told here; what trains is loaded after,
as Orbax and Grain take as long to load as everything before them.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import jax

from lm import assemble
from lm.cli.output import people, write_json
from lm.config import diff
from lm.experiment import Experiment
from lm.parallel import distributed
from lm.parallel.mesh import describe
from lm.track.format import count, grouped
from lm.train.program import Program, parameter_count


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    with people(arguments.json):
        figures = _train(arguments)
    if jax.process_index() == 0:
        write_json(arguments.json, figures)
    return 0


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    experiment: Experiment = arguments.experiment
    if arguments.name is not None:
        experiment = replace(experiment, name=arguments.name)
    distributed.start()
    say = print if jax.process_index() == 0 else lambda *_: None
    _tell_changes(arguments.given, experiment, say)
    program = assemble.program(experiment, jax.devices())
    _tell_size(experiment, program, say)
    return import_module("lm.cli.training").train(arguments, experiment, program, started, say)


def _tell_changes(given: Experiment, chosen: Experiment, say: Callable[[str], None]) -> None:
    changes = [f"{path} {old} -> {new}" for path, old, new in diff(given, chosen)]
    noun = "change" if len(changes) == 1 else "changes"
    told = f"{len(changes)} {noun}: {', '.join(changes)}" if changes else "as the file says"
    say(f"{chosen.name:<10} {told}")


def _tell_size(experiment: Experiment, program: Program, say: Callable[[str], None]) -> None:
    e, t = experiment, experiment.training
    say(
        f"model      decoder, {count(parameter_count(program))} parameters, "
        f"{len(e.model.blocks)} blocks of width {e.model.width}, {e.execution.compute_dtype} "
        "compute"
    )
    say(
        f"batch      {t.sequences} x {t.length} = {count(t.tokens_per_step)} tokens a step; "
        f"{grouped(t.steps)} steps = {count(t.steps * t.tokens_per_step)} tokens"
    )
    say(f"mesh       {describe(program.placed.mesh)} ({jax.process_count()} process"
        f"{'es' if jax.process_count() > 1 else ''})")  # fmt: skip
