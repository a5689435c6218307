"""``lm generate``: continue prompts with a checkpoint."""

import argparse
from pathlib import Path

import jax

from lm.cli.output import people, write_json
from lm.generate.sampling import Sampler
from lm.generate.text import Completion, complete
from lm.opened import check_prompts, open_for_generation, writer_of


def run(arguments: argparse.Namespace) -> int:
    """Generate; returns the exit code."""
    sampler = Sampler(
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p
    )
    prompts = arguments.prompt or [""]
    with people(arguments.json):
        made = _write(arguments, prompts, sampler)
    keys = ("prompt", "text", "ids", "stopped_by")
    write_json(arguments.json, [{key: getattr(one, key) for key in keys} for one in made])
    return 0


def _write(arguments: argparse.Namespace, prompts: list[str], sampler: Sampler) -> list[Completion]:
    opened = open_for_generation(Path(arguments.checkpoint), jax.devices())
    writer = writer_of(opened)
    check_prompts(opened, prompts)
    alone = len(prompts) == 1
    if alone:
        print(prompts[0], end="", flush=True)
    made = complete(
        writer,
        prompts,
        max_tokens=arguments.max_tokens,
        sampler=sampler,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
        on_text=_stream if alone else None,
    )
    if alone:
        print(flush=True)
        return made
    for number, one in enumerate(made):
        print(f"--- {number + 1} of {len(made)} ({one.stopped_by}) ---")
        print(f"{one.prompt}{one.text}\n", flush=True)
    return made


def _stream(_: int, text: str) -> None:
    print(text, end="", flush=True)
