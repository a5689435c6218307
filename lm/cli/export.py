"""``lm export``: a checkpoint as a Hugging Face folder."""

import argparse
import time
from pathlib import Path
from typing import Any

import jax

from lm.cli.output import people, write_json
from lm.convert.export import export
from lm.opened import facts_of, open_checkpoint
from lm.track.format import count, duration


def run(arguments: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    with people(arguments.json):
        figures = _export(arguments)
    write_json(arguments.json, figures)
    return 0


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    opened = open_checkpoint(Path(arguments.checkpoint), jax.devices())
    print(f"checkpoint {opened.folder}, step {opened.step:,}")
    made = export(
        opened.experiment.model,
        opened.params,
        opened.tokenizer,
        Path(arguments.out),
        dtype=arguments.dtype,
        facts=facts_of(opened),
    )
    seconds = time.perf_counter() - began
    print(
        f"exported   {made.family}, {count(made.parameters)} parameters in {arguments.dtype}, "
        f"{made.size / 1e6:,.1f} MB, in {duration(seconds)}"
    )
    print(f"written    {made.folder}: {', '.join(made.files)}")
    return {
        "out": str(made.folder),
        "family": made.family,
        "dtype": arguments.dtype,
        "parameters": made.parameters,
        "bytes": made.size,
        "files": list(made.files),
        "step": opened.step,
        "seconds": seconds,
    }
