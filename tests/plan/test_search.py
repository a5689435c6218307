"""The fastest setting that fits, and what is compiled to find it."""

import itertools
from dataclasses import replace

import pytest

from lm.errors import ConfigError
from lm.layers.execution import Execution
from lm.parallel.mesh import Mesh
from lm.plan.analytic import Kept, estimate, kind
from lm.plan.hardware import V5E
from lm.plan.planning import plan
from lm.plan.report import to_json
from lm.plan.search import CLOSE, UNSURE, Figures, Limits, laid_out, search, traced
from lm.plan.settings import Keeping, Setting, settings

FREE = Limits(compiles=100, seconds=1e9)
BLOCK, NOTHING = Keeping("block", ()), Keeping("nothing", ())
SLOW = replace(V5E, peak_flops=1e11, hbm_bytes=1e12)
"""So slow that computing again costs as much as a tiny run sends."""


@pytest.fixture(scope="module")
def run(tools):
    """Two ways to recompute on every mesh of eight devices."""
    e = tools.experiment(blocks=1, execution=Execution(scan="scan", remat="block"))
    question = tools.ask(e)
    base = Setting(Mesh(fsdp=8), BLOCK, 1, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.plan.settings.SAVES", ((),))
        ways = traced(e.execution, base, tools.asker(e))
    return e, tools.subject(e, question, SLOW), ways


def figures(guess, *, fits=True, seconds=10.0, slower=1.0, peak=None):
    """As if the compiler had said so."""
    step = guess.bound.step * slower
    bound = {**guess.bound._asdict(), "step": step, "dcn": 0.0}
    plan = {
        "fits": fits,
        "hbm_gib": {"peak": peak or guess.peak_gib},
        "short_gib": 0.0 if fits else 1.0,
        "bound_seconds": bound,
        "tokens_per_step": 1024,
    }
    return Figures(plan, (), seconds)


class Compiler:
    """Answers with the guess, or as it is told; remembers what it was asked."""

    def __init__(self, run, laid, **told):
        self.asked: list[Setting] = []
        self.told, self.laid = told, laid
        _, self.subject, ways = run
        self.ways = {k.keeping: k for k in ways}

    def __call__(self, setting):
        self.asked.append(setting)
        kept = self.ways[setting.keeping]
        guess = estimate(self.subject, self.laid[setting.mesh], setting, kept)
        return figures(guess, **self.told)


def test_the_best_is_that_of_a_space_compiled_to_its_end(run, tools, wired, quickly, monkeypatch):
    e, subject, ways = run
    subject = subject._replace(training=replace(subject.training, sequences=8))
    monkeypatch.setattr("lm.plan.planning.remat_choices", lambda: ("nothing", "block"))
    space = [Mesh(fsdp=8), Mesh(data=8, fsdp=1)]
    laid = {m: x for m, x in laid_out(subject, Mesh()).items() if m in space}
    compiled: dict[Setting, Figures] = {}

    def measure(setting):
        if setting not in compiled:
            question = tools.asker(e, SLOW)(setting)
            made = plan(question, tools.rebuilder(e, SLOW), changes=False)
            compiled[setting] = Figures(to_json(made), (), 1.0)
        return compiled[setting]

    found = search(subject, laid, ways, measure, FREE)
    tried = len(compiled)
    every = list(settings(space, [k.keeping for k in ways], subject.training))
    seconds = {s: measure(s).token_seconds for s in every}
    assert found.best.figures.token_seconds == min(seconds.values())
    assert tried < len(every)


def test_it_ends_when_nothing_left_is_thought_faster(run, wired):
    """What is compiled beside the best is of another kind, and may be faster than is thought."""
    _, subject, ways = run
    laid = laid_out(subject, Mesh())
    compiler = Compiler(run, laid)
    found = search(subject, laid, ways, compiler, FREE)
    assert found.ended == "nothing left is thought faster"
    assert found.best.setting == compiler.asked[0]
    assert len(compiler.asked) < len(laid)
    least = found.best.token_seconds
    assert least * (1 - CLOSE) <= min(c.token_seconds for c in found.candidates)
    others = [c for c in found.compiled if c.setting != found.best.setting]
    assert all((1 - UNSURE) * c.token_seconds < least for c in others)
    assert kind(found.best.setting.mesh) not in {kind(c.setting.mesh) for c in others}


def test_slower_than_thought_tries_others_but_no_neighbours(run, wired):
    """Whatever it computes again: what fits settles the slower ones of its mesh."""
    _, subject, ways = run
    laid = laid_out(subject, Mesh())
    compiler = Compiler(run, laid, slower=100.0)
    search(subject, laid, ways, compiler, FREE)
    kinds = [(s.mesh, s.microbatches) for s in compiler.asked]
    assert len(kinds) == len(set(kinds))
    assert {mesh for mesh, _ in kinds} == set(laid)


def test_no_more_is_compiled_than_is_allowed(run, wired):
    _, subject, ways = run
    laid = laid_out(subject, Mesh())
    compiler = Compiler(run, laid, slower=100.0)
    found = search(subject, laid, ways, compiler, Limits(2, 1e9))
    assert len(compiler.asked) == len(found.compiled) == 2
    assert found.ended == "2 were compiled"


def test_no_compile_begins_that_would_end_too_late(run, wired):
    _, subject, ways = run
    laid = laid_out(subject, Mesh())
    ticks = itertools.count(step=60.0)
    compiler = Compiler(run, laid, slower=100.0, seconds=60.0)
    found = search(subject, laid, ways, compiler, Limits(9, 200.0), clock=lambda: next(ticks))
    assert 1 < len(compiler.asked) < 4
    assert found.ended.endswith("are spent")


def test_what_does_not_fit_settles_what_needs_more(run, wired):
    """On its own mesh, and on others where the same is kept in as many pieces."""
    _, subject, ways = run
    laid = laid_out(subject, Mesh())
    compiler = Compiler(run, laid, fits=False, peak=100.0)
    said: list[str] = []
    found = search(subject, laid, ways, compiler, Limits(1, 1e9), said.append)
    assert found.best is None
    assert len(compiler.asked) == len({s.mesh for s in compiler.asked}) > 1
    peaks = [c.guess.peak for c in found.compiled]
    alike = [(c.setting.keeping, c.setting.microbatches) for c in found.compiled]
    for n, m in itertools.combinations(range(len(peaks)), 2):
        assert alike[n] != alike[m] or peaks[n] != peaks[m]
    assert sum("does not fit" in line for line in said) == len(compiler.asked)


def test_where_nothing_is_thought_to_fit_the_nearest_is_compiled(run, wired):
    _, subject, ways = run
    subject = subject._replace(chip=replace(SLOW, hbm_gib=1e-6))
    laid = laid_out(subject, Mesh())
    compiler = Compiler(run, laid, fits=False)
    found = search(subject, laid, ways, compiler, FREE)
    assert found.best is None
    assert len(compiler.asked) == 1
    assert found.hopeless == found.settings - 1


def test_what_cannot_be_compiled_is_passed_over(run, wired):
    _, subject, ways = run
    laid = laid_out(subject, Mesh())
    compiler = Compiler(run, laid)

    def picky(setting):
        if not compiler.asked:
            compiler.asked.append(setting)
            raise ConfigError("no such kernel")
        return compiler(setting)

    found = search(subject, laid, ways, picky, FREE)
    assert found.best.setting == compiler.asked[1]
    assert [c.refused for c in found.candidates if c.refused] == ["no such kernel"]
    assert found.candidates[-1].refused


def test_any_batch_is_ranked_by_the_time_of_a_token(run, wired):
    _, subject, ways = run
    laid = laid_out(subject, Mesh())
    found = search(subject, laid, ways, Compiler(run, laid), FREE, any_batch=True)
    assert {c.setting.sequences for c in found.candidates} == {4, 8, 16, 32, 64}
    ranked = [c.token_seconds for c in found.candidates if c.figures is None]
    assert ranked == sorted(ranked)


def test_more_wire_than_thought_is_learned_for_like_meshes(run, wired):
    """After one mesh was found slow on the wire, others of its kind are guessed slower too."""
    _, subject, ways = run
    laid = laid_out(subject, Mesh())
    quick = Compiler(run, laid)

    def heavy(setting):
        made = quick(setting)
        told = made.plan["bound_seconds"]
        slow = {name: 50 * told[name] for name in ("ici", "blocking", "step")}
        return made._replace(plan={**made.plan, "bound_seconds": {**told, **slow}})

    before = {c.setting: c for c in search(subject, laid, ways, quick, FREE).candidates}
    after = search(subject, laid, ways, heavy, Limits(1, 1e9)).candidates
    taught = kind(quick.asked[-1].mesh)
    guessed = [c for c in after if c.figures is None]
    assert {kind(c.setting.mesh) == taught for c in guessed} == {True, False}
    for c in guessed:
        slower = c.token_seconds > before[c.setting].token_seconds * 1.5
        assert slower == (kind(c.setting.mesh) == taught)


def test_kept_and_recomputed_are_traced_for_the_runs_own_way_first(run):
    _, _, ways = run
    assert isinstance(ways[0], Kept)
    assert ways[0].keeping == BLOCK
    assert {k.keeping for k in ways} == {BLOCK, NOTHING}
    assert min(k.flops for k in ways) == 0.0
