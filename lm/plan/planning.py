"""Plan a run: trace and compile its own step, and say what it needs and how fast it can be."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.layers.execution import DTYPES
from lm.parallel.mesh import axis_of, size
from lm.plan.changes import RematChoice, Tried, candidates, cheapest, fitting
from lm.plan.collectives import collectives, rows
from lm.plan.compiled import Built, build, trace
from lm.plan.hlo import parse
from lm.plan.memory import GIB, Hbm, Shards, hbm, shards
from lm.plan.question import Change, Question, Rebuild, remat_choices
from lm.plan.report import Plan
from lm.plan.roofline import UNKNOWN, Bound, Work, bound, memory_traffic
from lm.plan.trace import dot_flops, residual_bytes

Say = Callable[[str], None]
BASELINE = "nothing"
"""The remat choice that computes no product again."""


def plan(
    question: Question,
    rebuild: Rebuild,
    say: Say = lambda _: None,
    *,
    changes: bool = True,
) -> Plan:
    """Compile the run's own step and report bytes, traffic and time; touches no accelerator.

    Args:
        question: the run and the devices.
        rebuild: makes the question with a change, for what other choices would give.
        say: told of progress.
        changes: where it does not fit, compile changes with which it may.

    Raises:
        CompileError: the compiler refuses the step, and not for memory.
    """
    say(f"tracing    {question.name}")
    began = time.perf_counter()
    traced = trace(question.program)
    say(f"compiling  for {question.asked.name}")
    built = build(traced, began, question.name)
    table = _remat_table(question, rebuild, traced)
    made = _answer(question, built, traced, table)
    if made.fits or not changes:
        return made
    say(f"short of   {made.hbm.short:.2f} GiB; looking for changes that make it fit")
    least = dot_flops(traced.jaxpr) - made.recomputed_flops
    attempt = partial(_attempt, least)
    tried = cheapest(candidates(question, made.hbm, table), rebuild, attempt, say)
    return replace(made, changes=fitting(tried), tried=tried)


def _answer(question: Question, built: Built, traced: Any, table: list[RematChoice]) -> Plan:
    held = shards(question.program)
    limit = question.asked.chip.hbm_gib if question.asked.chip else None
    kept = kept_bytes(question, traced)
    memory = hbm(built, held, kept, limit)
    fits = built.shortage is None and memory.short == 0.0
    again = next((c.recomputed_flops for c in table if c.remat == question.execution.remat), 0.0)
    found, why = _collectives(question, built)
    limits = _bound(question, held, kept, again, found)
    return Plan(
        name=question.name,
        fits=fits,
        hbm=memory,
        remat=question.execution.remat,
        remat_table=table,
        collectives=None if found is None else rows(found.traffic, axis_of),
        collectives_unknown=why,
        unknown_loops=0 if found is None else found.unknown_loops,
        unread=0 if found is None else found.unread,
        flops=question.flops,
        recomputed_flops=again,
        training=question.training,
        bound=limits,
        bound_unknown=_no_bound(question, limits, why),
        asked=question.asked,
        mesh=_mesh(question),
        compile_seconds=built.compile_seconds,
        trace_seconds=built.trace_seconds,
        changes=(),
        tried=(),
        versions=versions(),
    )


def _remat_table(question: Question, rebuild: Rebuild, traced: Any) -> list[RematChoice]:
    """What each choice keeps and computes again, by tracing alone; the others are plain.

    They save no parts and cut nothing into pieces, which computes something again too.
    """
    plain = {"save": "", "offload": "", "mlp_pieces": "1", "vocab_pieces": "1"}
    parts = tuple(
        (f"execution.{name}", value)
        for name, value in plain.items()
        if getattr(question.execution, name) not in ((), 1)
    )
    kept: dict[str, float] = {}
    flops: dict[str, float] = {}
    for choice in remat_choices():
        other, seen = question, traced
        if choice != question.execution.remat:
            try:
                other = rebuild(Change((*parts, ("execution.remat", choice))))
                seen = trace(other.program)
            except UserError:
                continue  # not on these devices
        kept[choice], flops[choice] = kept_bytes(other, seen), dot_flops(seen.jaxpr)
    least = flops.get(BASELINE, min(flops.values(), default=0.0))
    return [
        RematChoice(
            choice,
            kept[choice] / GIB,
            max(0.0, flops[choice] - least),
            max(0.0, flops[choice] - least) / question.step_flops,
        )
        for choice in kept
    ]


def kept_bytes(question: Question, traced: Any) -> float:
    """Bytes of one device that the traced backward pass finds."""
    program = question.program
    places = [x.sharding for x in _leaves(program)]
    return residual_bytes(traced.jaxpr, program.placed.mesh, places)


def _collectives(question: Question, built: Built) -> tuple[Any, str | None]:
    if built.text is None:
        return None, built.no_text
    try:
        return collectives(parse(built.text), question.program.placed.mesh), None
    except ValueError as error:
        return None, f"the compiled program cannot be read ({error})"


def _bound(question: Question, held: Shards, kept: float, again: float, found: Any) -> Bound:
    program = question.program
    mesh = program.placed.mesh
    width = jnp.dtype(DTYPES[question.execution.compute_dtype]).itemsize
    numbers = sum(x.size for x in _trainable(program))
    whole = numbers * width / size(mesh, "tensor")
    traffic = memory_traffic(
        held, kept, whole, question.training.microbatches, recomputes=again > 0
    )
    work = Work(question.step_flops, again, traffic)
    return bound(work, None if found is None else found.traffic, question.asked.chip, mesh)


def _attempt(least: float, change: Change, question: Question) -> Tried:
    """Compile a changed run; ``least`` are the operations of a step that computes nothing again."""
    began = time.perf_counter()
    traced = trace(question.program)
    built = build(traced, began, question.name)
    held, kept = shards(question.program), kept_bytes(question, traced)
    limit = question.asked.chip.hbm_gib if question.asked.chip else None
    memory: Hbm = hbm(built, held, kept, limit)
    fits = built.shortage is None and memory.short == 0.0
    found = _collectives(question, built)[0] if fits else None
    again = max(0.0, dot_flops(traced.jaxpr) - least)
    seconds = _bound(question, held, kept, again, found).step if fits else None
    return Tried(change, fits, memory.peak, seconds)


def _no_bound(question: Question, limits: Bound, why: str | None) -> str | None:
    if limits == UNKNOWN:
        return "no figures are published for a processor"
    return None if limits.step is not None else f"the collectives are unknown: {why}"


def _mesh(question: Question) -> dict[str, list[int]]:
    """Each axis of the user's with the sizes of its parts."""
    found: dict[str, list[int]] = {}
    for name, ways in question.program.placed.mesh.shape.items():
        found.setdefault(axis_of(name), []).append(ways)
    return found


def _leaves(program: Any) -> list[Any]:
    return jax.tree.leaves((program.state, program.batch))


def _trainable(program: Any) -> list[Any]:
    return jax.tree.leaves((program.state.trainable, program.state.frozen))


def versions() -> dict[str, str | None]:
    """What compiled it: another version may answer otherwise."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("lm", "jax", "jaxlib", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
