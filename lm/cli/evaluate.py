"""``lm evaluate``: score a checkpoint on a whole held-out set."""

import argparse
import time
from pathlib import Path
from typing import Any

import jax

from lm import assemble
from lm.cli.output import people, write_json
from lm.corpus.readers import read_documents
from lm.data.shards import Shards
from lm.evaluate.evaluator import Context, Figures
from lm.evaluate.perplexity import Perplexity, Scorer, score_texts
from lm.opened import Opened, evaluation_context, open_checkpoint
from lm.shards import MANIFEST, read_manifest
from lm.track.format import duration


def run(arguments: argparse.Namespace) -> int:
    """Score; returns the exit code."""
    with people(arguments.json):
        figures = _score(arguments)
    write_json(arguments.json, figures)
    return 0


def _score(arguments: argparse.Namespace) -> dict[str, Any]:
    opened = open_checkpoint(Path(arguments.checkpoint), jax.devices(), exact=True)
    context = evaluation_context(opened, arguments.batch)
    print(f"checkpoint {opened.folder}, step {opened.step:,}")
    began = time.perf_counter()
    given = Path(arguments.data) if arguments.data else None
    if given is None or (given / MANIFEST).is_file():
        data = assemble.held_out_of(opened.experiment) if given is None else _split(given)
        print(f"data       {data.path}, {data.split}")
        told = f"{data.path}:{data.split}"
        found = Perplexity(data=data).build(context)(opened.params)
    else:
        print(f"data       {given}, as text")
        told, found = str(given), _texts(opened, context, str(given))
    seconds = time.perf_counter() - began
    print(
        f"scored     {found['tokens']:,} tokens, {found['bytes']:,} bytes in {duration(seconds)}\n"
        f"loss       {found['loss']:.4f} nats a token\n"
        f"perplexity {found['perplexity']:.3f}\n"
        f"bits/byte  {found['bits_per_byte']:.4f}\n"
        f"accuracy   {100 * found['accuracy']:.2f} % of next tokens"
    )
    return {"step": opened.step, "data": told, **found, "seconds": seconds}


def _split(folder: Path) -> Shards:
    """The held-out part of a data set, or all of it where nothing is held out."""
    splits = read_manifest(folder).splits
    return Shards(
        path=str(folder), split="held_out" if "held_out" in splits else next(iter(splits))
    )


def _texts(opened: Opened, context: Context, path: str) -> Figures:
    texts = (document.text for document in read_documents([path]))
    return score_texts(Scorer(context), opened.params, opened.tokenizer, texts)
