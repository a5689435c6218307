"""``lm report``: a run's curves as one page."""

import argparse
from pathlib import Path

from lm.cli.output import people, write_json
from lm.track.report import write_report


def run(arguments: argparse.Namespace) -> int:
    """Draw; returns the exit code."""
    with people(arguments.json):
        page = write_report(Path(arguments.run))
        print(f"report     {page}")
    write_json(arguments.json, {"run": arguments.run, "report": str(page)})
    return 0
