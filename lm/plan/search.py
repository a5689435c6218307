"""Find the fastest setting of a run that fits its slice.

Every setting is guessed by formula; what cannot fit is dropped, and the rest is compiled, the one
thought fastest first.  Each compile teaches: which share of the traffic blocks, how far the guess
of memory was off on that mesh, and which settings it settles.  The search ends when nothing left
is thought faster than the best that was compiled.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.layers.execution import Execution
from lm.parallel.mesh import Mesh
from lm.plan.analytic import (
    Estimate,
    Habits,
    Kept,
    Laid,
    Subject,
    estimate,
    kind,
    lay,
    learned,
)
from lm.plan.compiled import trace
from lm.plan.planning import kept_bytes
from lm.plan.question import Question
from lm.plan.settings import Keeping, Setting, keepings, meshes, settings
from lm.plan.trace import dot_flops

Say = Callable[[str], None]
DOUBT = 0.85
"""A setting is dropped where even this share of its guess is more than there is."""
CLOSE = 0.02
"""Settings of a mesh and number of microbatches whose guesses differ by less than this share are
not both compiled."""
UNSURE = 0.05
"""A guess for a kind of mesh of which none was compiled may be too slow by this share."""


class Limits(NamedTuple):
    """When a search ends at the latest."""

    compiles: int
    """To the end; that a step does not fit is told in seconds."""
    seconds: float


class Figures(NamedTuple):
    """What compiling a setting gave, now or at some earlier time."""

    plan: Mapping[str, Any]
    """As JSON."""
    page: Sequence[str]
    seconds: float
    """What it took now: nothing where it was known."""

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return bool(self.plan["fits"])

    @property
    def peak_gib(self) -> float:
        """Of a device."""
        return float(self.plan["hbm_gib"]["peak"])

    @property
    def token_seconds(self) -> float:
        """Of a step, over its tokens; infinite where the compiler's text tells no bound."""
        step = self.plan["bound_seconds"]["step"]
        return float("inf") if step is None else step / self.plan["tokens_per_step"]


class Candidate(NamedTuple):
    """A setting, what it is thought to need, and what it was found to."""

    setting: Setting
    guess: Estimate
    token_seconds: float
    """As guessed."""
    mfu: float
    """As guessed: of a step that takes no longer, attention counted causal."""
    figures: Figures | None = None
    refused: str | None = None
    """Why it cannot be compiled."""

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Compiled and fitting first, by seconds of a token; then guesses; last what fails."""
        f = self.figures
        if self.refused is not None or (f is not None and not f.fits):
            return True, True, f.plan["short_gib"] if f else float("inf")
        return False, f is None, f.token_seconds if f else self.token_seconds


class Found(NamedTuple):
    """What a search gave."""

    candidates: Sequence[Candidate]
    """All that were compiled, and the guesses of those thought to fit; the best first."""
    settings: int
    """How many there are."""
    hopeless: int
    """How many of them are thought not to fit."""
    ended: str
    """Why no more were compiled."""
    seconds: float

    @property
    def best(self) -> Candidate | None:
        """The fastest that was compiled and fits."""
        first = self.candidates[0] if self.candidates else None
        return first if first and first.figures and first.figures.fits else None

    @property
    def compiled(self) -> list[Candidate]:
        """Those with the compiler's answer."""
        return [c for c in self.candidates if c.figures is not None]


Measure = Callable[[Setting], Figures]
"""Compiles a setting, or remembers it; raises a ``UserError`` where it cannot be compiled."""


def traced(execution: Execution, base: Setting, ask: Callable[[Setting], Question]) -> list[Kept]:
    """What each way to recompute keeps and costs; those that another beats in both are left out.

    Args:
        execution: the run's own; its way always stays.
        base: a setting that can be built, in whose place it is traced.
        ask: the question of a setting.
    """
    found: list[Kept] = []
    for way in keepings(execution):
        try:
            question = ask(base._replace(keeping=way))
        except UserError:
            continue  # parts that this run cannot keep
        seen = trace(question.program)
        tokens = question.training.tokens_per_step
        kept = kept_bytes(question, seen) * question.program.placed.mesh.size * base.microbatches
        found.append(Kept(way, kept / tokens, dot_flops(seen.jaxpr) / tokens))
    least = min(k.flops for k in found)
    return undominated([k._replace(flops=k.flops - least) for k in found])


def undominated(found: Sequence[Kept]) -> list[Kept]:
    """The first, and those than which no other keeps less and recomputes less."""
    rest = [
        k
        for n, k in enumerate(found)
        if not any(
            (o.bytes <= k.bytes and o.flops <= k.flops)
            and (m < n or o.bytes < k.bytes or o.flops < k.flops)
            for m, o in enumerate(found)
        )
    ]
    return list(dict.fromkeys([found[0], *rest]))


def laid_out(subject: Subject, own: Mesh) -> dict[Mesh, Laid]:
    """The meshes that the model and the slice allow."""
    found: dict[Mesh, Laid] = {}
    for mesh in meshes(own, len(subject.devices) // own.slices, subject.training):
        try:
            found[mesh] = lay(subject, mesh)
        except UserError:
            continue  # heads, widths or the torus do not divide so
    return found


def search(
    subject: Subject,
    laid: Mapping[Mesh, Laid],
    ways: Sequence[Kept],
    measure: Measure,
    limits: Limits,
    say: Say = lambda _: None,
    *,
    any_batch: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Compile settings, the one thought fastest first, until nothing left is thought faster.

    Args:
        subject: the run and the slice.
        laid: of ``laid_out``.
        ways: of ``traced``.
        measure: compiles one.
        limits: the most compiles and seconds.
        say: told of progress.
        any_batch: also take fewer or more rows a step; ranked by the time of a token.
        clock: tells seconds.
    """
    began = clock()
    by_way = {k.keeping: k for k in ways}
    every = list(settings([*laid], [*by_way], subject.training, any_batch=any_batch))
    state = _State(subject, laid, by_way, every)
    say(f"settings   {len(every)}, of which {len(state.waiting)} may fit; {len(laid)} meshes")
    ended = "nothing is left"
    while (candidate := state.next()) is not None:
        best = state.best
        if best is not None and best.token_seconds <= state.hope(candidate):
            ended = "nothing left is thought faster"
            break
        if state.compiled >= limits.compiles:
            ended = f"{limits.compiles} were compiled"
            break
        spent = clock() - began
        if state.done and spent + state.typical > limits.seconds:
            ended = f"{spent:.0f} s are spent"
            break
        left = min(limits.compiles - state.compiled, 1 + len(state.waiting))
        eta = min(limits.seconds - spent, left * state.typical) if state.typical else None
        say(_line(candidate, state.compiled + 1, limits.compiles, spent, eta))
        state.take(candidate, measure, say)
    return state.found(len(every), ended, clock() - began)


class _State:
    """What is waiting and what was compiled."""

    def __init__(
        self,
        subject: Subject,
        laid: Mapping[Mesh, Laid],
        ways: Mapping[Keeping, Kept],
        every: Sequence[Setting],
    ) -> None:
        self.subject, self.laid, self.ways = subject, laid, ways
        self.habits: Habits = {}
        self.done: list[Candidate] = []
        self.settled: list[Candidate] = []
        guessed = [self.guess(s) for s in every]
        self.waiting = [c for c in guessed if self._may_fit(c, DOUBT)]
        self.hopeless = sorted(
            (c for c in guessed if not self._may_fit(c, DOUBT)), key=lambda c: c.guess.peak
        )
        self._sort()

    @property
    def limit(self) -> float:
        return self.subject.chip.hbm_gib

    @property
    def best(self) -> Figures | None:
        fitting = [c.figures for c in self.done if c.figures and c.figures.fits]
        return min(fitting, key=lambda f: f.token_seconds, default=None)

    @property
    def compiled(self) -> int:
        """How many were compiled to the end; that one does not fit is told in seconds."""
        return sum(c.figures is None or c.figures.fits for c in self.done)

    @property
    def typical(self) -> float:
        """Seconds of a compile that ends well."""
        done = [c.figures for c in self.done if c.figures and c.figures.fits]
        spent = [f.seconds for f in done if f.seconds > 0]
        return sum(spent) / len(spent) if spent else 0.0

    def _may_fit(self, c: Candidate, share: float) -> bool:
        return share * c.guess.peak_gib <= self.limit

    def guess(self, setting: Setting) -> Candidate:
        """With what compiling like meshes has taught."""
        made = self._estimate(setting, self.habits)
        tokens = setting.sequences * self.subject.training.length
        seconds = (made.bound.step or 0.0) / tokens
        peak = self.subject.chip.peak_flops * len(self.subject.devices)
        return Candidate(setting, made, seconds, self.subject.flops.causal / seconds / peak)

    def hope(self, c: Candidate) -> float:
        """Seconds of a token that it may come to."""
        known = kind(c.setting.mesh) in self.habits
        return c.token_seconds * (1.0 if known else 1 - UNSURE)

    def _sort(self) -> None:
        self.waiting.sort(key=lambda c: (self.hope(c), c.guess.peak))

    def next(self) -> Candidate | None:
        """The one thought fastest; where none is thought to fit, the one that lacks least."""
        if self.waiting:
            return self.waiting[0]
        return self.hopeless[0] if self.hopeless and not self.done else None

    def take(self, candidate: Candidate, measure: Measure, say: Say) -> None:
        """Compile one, and drop what it settles."""
        self.waiting = [c for c in self.waiting if c.setting != candidate.setting]
        self.hopeless = [c for c in self.hopeless if c.setting != candidate.setting]
        try:
            figures = measure(candidate.setting)
        except UserError as error:
            say(f"           cannot be compiled: {str(error)[:100]}")
            self.done.append(candidate._replace(refused=str(error)))
            return
        told = "fits" if figures.fits else "does not fit"
        step = figures.plan["bound_seconds"]["step"]
        say(f"           {told}, {figures.peak_gib:.2f} GiB" + (f", {step:.3g} s" if step else ""))
        if figures.fits:
            self._learn(candidate.setting, figures)
        self.done.append(candidate._replace(figures=figures))
        settled = {c.setting for c in self.waiting if self._settled(c)}
        self.settled += [c for c in self.waiting if c.setting in settled]
        self.waiting = [c for c in self.waiting if c.setting not in settled]
        self._sort()

    def _estimate(self, setting: Setting, habits: Habits) -> Estimate:
        laid, kept = self.laid[setting.mesh], self.ways[setting.keeping]
        return estimate(self.subject, laid, setting, kept, habits.get(kind(setting.mesh)))

    def _learn(self, setting: Setting, figures: Figures) -> None:
        habit = learned(self._estimate(setting, {}).bound, figures.plan["bound_seconds"])
        if habit is not None:
            self.habits = {**self.habits, kind(setting.mesh): habit}
            self.waiting = [self.guess(c.setting) for c in self.waiting]

    def _settled(self, c: Candidate) -> bool:
        """Whether one that was compiled says enough of this one."""
        return any(
            self._settles(self.guess(d.setting), d.figures, c) for d in self.done if d.figures
        )

    def _settles(self, known: Candidate, figures: Figures, c: Candidate) -> bool:
        k, s = known.setting, c.setting
        same_mesh, same_pieces = k.mesh == s.mesh, k.microbatches == s.microbatches
        if figures.fits:
            slower = c.token_seconds > known.token_seconds * (1 - CLOSE)
            return same_mesh and same_pieces and slower
        if c.guess.peak >= known.guess.peak and (same_mesh or same_pieces):
            return same_mesh or (k.keeping == s.keeping and k.sequences == s.sequences)
        # The guess is off by what the compiler says; half of it, for it may say too much.
        off = (figures.peak_gib - known.guess.peak_gib) / 2
        return same_mesh and c.guess.peak_gib + max(0.0, off) > self.limit

    def found(self, settings: int, ended: str, seconds: float) -> Found:
        guesses = [self.guess(c.setting) for c in (*self.settled, *self.waiting)]
        every = sorted([*self.done, *guesses], key=lambda c: c.rank)
        return Found(every, settings, len(self.hopeless), ended, seconds)


def _line(c: Candidate, number: int, most: int, spent: float, eta: float | None) -> str:
    s = c.setting
    left = "" if eta is None else f", at most {max(0.0, eta):.0f} s left"
    return (
        f"compiling  {number} of at most {most} ({spent:.0f} s{left}): {words(s.mesh)}; "
        f"{s.keeping.words}; {s.microbatches} microbatches; thought {c.guess.peak_gib:.1f} GiB, "
        f"{c.guess.bound.step or 0.0:.3g} s"
    )


def words(mesh: Mesh) -> str:
    """``data 4, fsdp 64``."""
    sizes = {axis: getattr(mesh, axis) for axis in ("slices", "data", "fsdp", "context", "tensor")}
    return ", ".join(f"{axis} {n}" for axis, n in sizes.items() if n > 1) or "one device"
