"""``lm plan``: whether a run fits a slice, and how fast it can be there, without the slice."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lm import assemble
from lm.cli.output import people, write_json
from lm.cli.overrides import override
from lm.config import diff
from lm.experiment import Experiment
from lm.plan.hardware import Slice
from lm.plan.planning import plan
from lm.plan.question import Change, Question
from lm.plan.report import page, to_json
from lm.plan.topology import devices_for

DOES_NOT_FIT = 3


def run(arguments: argparse.Namespace) -> int:
    """Plan; returns the exit code: 3 where the run does not fit."""
    asked: Slice = arguments.asked
    if arguments.slices is None and asked.chip is not None:
        asked = asked._replace(slices=arguments.experiment.parallel.mesh.slices)
    known: dict[Slice, Sequence[Any]] = {}

    def question(experiment: Experiment, there: Slice) -> Question:
        if there not in known:
            known[there] = devices_for(there)
        e = on_slices(experiment, there)
        program = assemble.program(e, known[there])
        flops = assemble.flops_per_token(e, program.placed)
        return Question(
            name=e.name,
            program=program,
            training=e.training,
            execution=e.execution,
            mesh=e.parallel.mesh,
            optimizer=e.optimizer,
            flops=flops,
            asked=there,
        )

    def rebuild(change: Change) -> Question:
        words = [word for name, value in change.settings for word in (f"--{name}", value)]
        there = asked if change.slices is None else asked._replace(slices=change.slices)
        return question(override(arguments.experiment, words), there)

    with people(arguments.json):
        asking = question(arguments.experiment, asked)
        for path, old, new in diff(arguments.given, on_slices(arguments.experiment, asked)):
            print(f"changed    {path} {old} -> {new}")
        made = plan(asking, rebuild, _progress)
        for line in page(made):
            print(line)
    write_json(arguments.json, to_json(made))
    return 0 if made.fits else DOES_NOT_FIT


def on_slices(experiment: Experiment, asked: Slice) -> Experiment:
    """The experiment on as many slices as are asked for."""
    parallel = experiment.parallel
    if asked.slices == parallel.mesh.slices or asked.chip is None:
        return experiment
    mesh = replace(parallel.mesh, slices=asked.slices)
    return replace(experiment, parallel=replace(parallel, mesh=mesh))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
