"""What would make a run fit: candidates by a guess of what they cost, each then compiled."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from lm.errors import UserError
from lm.parallel.mesh import size
from lm.plan.memory import Hbm
from lm.plan.question import Change, Question

WANTED = 3
MOST_TRIES = 12
PATIENCE = 0.5
"""A change is tried where it is thought to save at least this share of what is lacking."""


class RematChoice(NamedTuple):
    """What the step would keep and compute again with a choice of ``execution.remat``; traced."""

    remat: str
    activations_gib: float
    recomputed_flops: float
    recomputed_share: float
    """Of the model's own operations."""


class Candidate(NamedTuple):
    """A change, with guesses of what it costs and saves."""

    change: Change
    cost: float
    """Share by which a token is thought to take longer, or to cost more chips."""
    saved_gib: float


class Tried(NamedTuple):
    """A change that was compiled."""

    change: Change
    fits: bool
    peak_gib: float
    step_seconds: float | None
    """The bound of a step, where it fits."""


def candidates(question: Question, hbm: Hbm, table: Sequence[RematChoice]) -> list[Candidate]:
    """Changes that might make it fit, the cheapest first."""
    now = next((c for c in table if c.remat == question.execution.remat), None)
    kept = now.activations_gib if now else hbm.activations
    remat = [
        Candidate(
            Change((("execution.remat", c.remat),)),
            (c.recomputed_flops - now.recomputed_flops) / question.step_flops,
            now.activations_gib - c.activations_gib,
        )
        for c in table
        if now is not None and c.activations_gib < now.activations_gib
    ]
    pieces = list(_microbatches(question, kept))
    both = [
        Candidate(r.change + p.change, r.cost + p.cost, _left(kept, r, p))
        for r in remat
        for p in pieces
    ]
    alone = [*_optimizer(question, hbm), *_sequences(question, kept), *_meshes(question, hbm)]
    with_remat = [
        Candidate(a.change + r.change, a.cost + r.cost, a.saved_gib + r.saved_gib)
        for a in _meshes(question, hbm)
        for r in remat
    ]
    every = [*remat, *pieces, *both, *alone, *with_remat, *_slices(question, hbm)]
    useful = [c for c in every if c.saved_gib >= PATIENCE * hbm.short]
    return sorted(useful or every, key=lambda c: c.cost)


def cheapest(
    found: Sequence[Candidate],
    rebuild: Callable[[Change], Question],
    attempt: Callable[[Change, Question], Tried],
    say: Callable[[str], None],
) -> list[Tried]:
    """Compile candidates in order until three fit; returns all that were tried."""
    tried: list[Tried] = []
    for candidate in found:
        if sum(t.fits for t in tried) == WANTED or len(tried) == MOST_TRIES:
            break
        if any(t.fits and set(t.change.settings) < set(candidate.change.settings) for t in tried):
            continue  # a part of it is enough
        try:
            question = rebuild(candidate.change)
        except UserError:
            continue  # it does not divide the slice
        say(f"trying     {candidate.change.words}")
        try:
            tried.append(attempt(candidate.change, question))
        except UserError as error:
            say(f"           the compiler refuses it: {str(error)[:100]}")
            continue
        last = tried[-1]
        told = "fits" if last.fits else "does not fit"
        say(f"           {told}, {last.peak_gib:.2f} GiB")
    return tried


def _left(kept: float, remat: Candidate, pieces: Candidate) -> float:
    """What two savings save together."""
    after = max(0.0, kept - remat.saved_gib)
    share = 1 - pieces.saved_gib / kept if kept else 1.0
    return kept - after * share


def _microbatches(question: Question, kept: float) -> Iterator[Candidate]:
    training = question.training
    rows = _rows(question)
    count = training.microbatches * 2
    while count <= rows and rows % count == 0:
        times = count / training.microbatches
        yield Candidate(
            Change((("training.microbatches", str(count)),)),
            _gathering(question) * (times - 1) * training.microbatches,
            kept * (1 - 1 / times),
        )
        count *= 2


def _gathering(question: Question) -> float:
    """Time of one microbatch's weights on the wire, as a share of a whole step's compute.

    They are gathered in both passes and their gradients scattered, none of it overlapped.
    """
    chip, program = question.asked.chip, question.program
    if chip is None:
        return 0.02
    mesh = program.placed.mesh
    numbers = sum(x.size for x in jax.tree.leaves(program.state.trainable))
    seconds = 3 * 2 * numbers / size(mesh, "tensor") / (chip.axes * chip.link_bytes)
    return seconds / (question.step_flops / chip.peak_flops / mesh.devices.size)


def _optimizer(question: Question, hbm: Hbm) -> Iterator[Candidate]:
    """A first moment in bfloat16, where the optimizer has such a choice."""
    if getattr(question.optimizer, "state_dtype", None) == "float32":
        change = Change((("optimizer.state_dtype", "bfloat16"),))
        yield Candidate(change, 0.001, hbm.optimizer / 4)


def _sequences(question: Question, kept: float) -> Iterator[Candidate]:
    """Fewer rows, where each device has more than one: another recipe, so it is guessed dearer."""
    training, rows = question.training, _rows(question)
    if rows % 2 == 0 and (rows // 2) % training.microbatches == 0:
        change = Change((("training.sequences", str(training.sequences // 2)),))
        yield Candidate(change, 0.05, kept / 2)


def _meshes(question: Question, hbm: Hbm) -> Iterator[Candidate]:
    """More of the devices to ``fsdp`` or to ``tensor``."""
    mesh = question.program.placed.mesh
    data, fsdp, tensor = (size(mesh, axis) for axis in ("data", "fsdp", "tensor"))
    states = hbm.parameters + hbm.optimizer + hbm.gradients
    if data > 1:
        change = Change((("parallel.mesh.data", "1"), ("parallel.mesh.fsdp", str(fsdp * data))))
        yield Candidate(change, 0.01, states * (1 - 1 / data))
    for times in (2, 4, 8):
        if fsdp % times == 0 and fsdp > times:
            settings = (
                ("parallel.mesh.fsdp", str(fsdp // times)),
                ("parallel.mesh.tensor", str(tensor * times)),
            )
            yield Candidate(Change(settings), 0.08 * times, hbm.temporaries * (1 - 1 / times))


def _slices(question: Question, hbm: Hbm) -> Iterator[Candidate]:
    """Twice the chips, with half the rows on each."""
    asked = question.asked
    if asked.chip is not None:
        change = Change((), slices=asked.slices * 2)
        yield Candidate(change, 1.0, (hbm.activations + hbm.temporaries) / 2)


def _rows(question: Question) -> int:
    """Rows of a step on one device."""
    mesh = question.program.placed.mesh
    ways = size(mesh, "slices", "data", "fsdp", "expert")
    return max(1, question.training.sequences // ways)


def fitting(tried: Sequence[Tried]) -> list[Tried]:
    """Those that fit, the fastest first."""
    fits = [t for t in tried if t.fits]
    return sorted(fits, key=lambda t: t.step_seconds or 0.0)
