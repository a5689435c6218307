"""``lm report``: a run's curves as one page."""

import argparse
from pathlib import Path

from lm.checkpoint.layout import EXPERIMENT
from lm.cli.output import people, write_json
from lm.errors import CheckpointError
from lm.track.report import write_report

METRICS = "metrics.jsonl"


def run(arguments: argparse.Namespace) -> int:
    """Draw; returns the exit code."""
    run = Path(arguments.run)
    if run.is_dir() and not any((run / name).exists() for name in (EXPERIMENT, METRICS)):
        raise CheckpointError(
            f"{run}: no run here: neither {EXPERIMENT} nor {METRICS}. Give the folder of a run, as "
            "runs/NAME."
        )
    with people(arguments.json):
        page = write_report(run)
        print(f"report     {page}")
    write_json(arguments.json, {"run": arguments.run, "report": str(page)})
    return 0
