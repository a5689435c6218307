"""``lm plan``: whether a run fits a TPU slice, and how fast it can be there, without the slice."""

import argparse
import sys

from lm.cli import search
from lm.cli.asking import Asking, on_slices
from lm.cli.output import people, write_json
from lm.config import diff
from lm.plan.hardware import Slice
from lm.plan.planning import plan
from lm.plan.report import page, to_json

DOES_NOT_FIT = 3


def run(arguments: argparse.Namespace) -> int:
    """Plan; returns the exit code: 3 where the run does not fit."""
    asked: Slice = arguments.asked
    if arguments.slices is None and asked.chip is not None:
        asked = asked._replace(slices=arguments.experiment.parallel.mesh.slices)
    experiment = on_slices(arguments.experiment, asked)
    asking = Asking()
    if arguments.search:
        fits, lines, told = search.run(arguments, experiment, asked, asking, _progress)
    else:
        question = asking.question(experiment, asked)
        made = plan(question, asking.rebuild(experiment, asked), _progress)
        fits, lines, told = made.fits, [*page(made)], to_json(made)
    with people(arguments.json):
        for path, old, new in diff(arguments.given, experiment):
            print(f"changed    {path} {old} -> {new}")
        for line in lines:
            print(line)
    write_json(arguments.json, told)
    return 0 if fits else DOES_NOT_FIT


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
