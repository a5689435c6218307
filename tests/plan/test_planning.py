"""A run's own step, planned for the eight virtual devices."""

from dataclasses import replace

import jax
import pytest

import lm.plan.planning as planning
from lm.layers.execution import Execution
from lm.plan.compiled import Built, Sizes, trace
from lm.plan.hardware import V5E
from lm.plan.memory import GIB
from lm.plan.planning import plan
from lm.plan.question import remat_choices
from lm.plan.report import page, size, to_json
from lm.plan.roofline import UNKNOWN
from lm.plan.trace import residual_bytes


@pytest.fixture(scope="module")
def small(tools):
    e = tools.experiment(execution=Execution(scan="scan", remat="block"))
    question = tools.ask(e)
    return question, plan(question, tools.rebuilder(e))


def test_parts_of_the_peak_sum_to_it(small):
    h = small[1].hbm
    parts = h.parameters + h.optimizer + h.gradients + h.activations + h.temporaries + h.code
    assert h.peak > 0
    assert parts == pytest.approx(h.peak, rel=0.02)
    assert min(parts, h.temporaries, h.gradients) >= 0


def test_every_split_gradient_leaves_once_by_reduce_scatter(small):
    """The rest is what no weight is split for: norms and the figures of the step."""
    question, made = small
    leaves = jax.tree.leaves(question.program.state.trainable)
    split = sum(x.size * 4 for x in leaves if not x.sharding.is_fully_replicated)
    found = {(r.kind, r.axes): r for r in made.collectives}
    scattered = found["reduce-scatter", ("fsdp",)].wire_gib_per_step * GIB
    assert scattered == pytest.approx(split * 7 / 8, rel=1e-6)
    assert found["all-reduce", ("fsdp",)].wire_gib_per_step * GIB < 0.05 * scattered


def test_weights_are_gathered_in_both_passes(small):
    question, made = small
    stacked = [
        x for x in jax.tree.leaves(question.program.state.trainable["stack_0"])
        if not x.sharding.is_fully_replicated
    ]  # fmt: skip
    found = {(r.kind, r.axes): r for r in made.collectives}
    gathered = found["all-gather", ("fsdp",)].wire_gib_per_step * GIB
    blocks = 2 * sum(x.size * 4 for x in stacked) * 7 / 8
    outside = 64 * 32 * 4 * 7 / 8
    assert gathered == pytest.approx(blocks + 2 * outside, rel=1e-6)


def test_each_remat_choice_is_told(small):
    table = {c.remat: c for c in small[1].remat_table}
    assert set(table) == set(remat_choices())
    assert table["nothing"].recomputed_flops == 0
    assert table["block"].activations_gib < table["nothing"].activations_gib
    assert 0 < table["block"].recomputed_share < 0.5
    assert small[1].recomputed_flops == table["block"].recomputed_flops


def test_each_remat_choice_is_told_also_where_parts_are_saved(tools):
    """Other choices are traced without the parts, which most of them would refuse."""
    e = tools.experiment(execution=Execution(scan="scan", remat="block", save=("qkv", "up")))
    question = tools.ask(e)
    table = planning._remat_table(question, tools.rebuilder(e), trace(question.program))
    found = {c.remat: c for c in table}
    assert set(found) == set(remat_choices())
    assert found["nothing"].recomputed_flops == 0 < found["block"].recomputed_flops


def test_what_an_mlp_in_pieces_computes_again_is_told(tools):
    """Beside the other choices, which are traced whole: some of them would refuse the pieces."""
    cut = Execution(scan="scan", remat="block", save=("qkv",), mlp_pieces=2, vocab_pieces=4)
    e = tools.experiment(execution=cut)
    question = tools.ask(e)
    table = planning._remat_table(question, tools.rebuilder(e), trace(question.program))
    found = {c.remat: c for c in table}
    assert set(found) == set(remat_choices())
    assert found["block"].recomputed_flops > found["nothing"].recomputed_flops == 0


def test_json_has_what_readers_count_on_and_no_bound_for_a_processor(small):
    question, made = small
    told = to_json(made)
    assert told["fits"] is True
    assert set(told["hbm_gib"]) >= {"limit", "peak", "parameters", "optimizer", "gradients"}
    assert set(told["collectives"][0]) >= {
        "kind", "axes", "wire_gib_per_step", "count_per_step", "overlapped"
    }  # fmt: skip
    assert told["flops_per_step"] == question.step_flops
    assert told["tokens_per_step"] == 16 * 64
    assert set(told["bound_seconds"]) >= {"compute", "hbm", "ici", "dcn", "step"}
    assert set(told["bound_seconds"].values()) == {None}
    assert told["mfu_ceiling"] is None
    assert told["days"] is None
    assert "processor" in told["bound_unknown"]
    assert told["compile_seconds"] > 0


def test_the_page_is_one_screen(small):
    lines = list(page(small[1]))
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 140
    assert any("no limit is published" in line for line in lines)


def test_what_does_not_fit_gets_changes_with_which_it_was_compiled_and_does(tools, monkeypatch):
    """A compiler that needs what the trace says, and a device with half of the present need."""
    e = tools.experiment()
    question = tools.ask(e)
    mesh = question.program.placed.mesh
    answers: list[float] = []

    def compiled(traced, began, name):
        answers.append(1e5 + residual_bytes(traced.jaxpr, mesh))
        return Built(Sizes(answers[-1], 0.0, 0.0), None, "not printed", None, 0.1, 0.2)

    monkeypatch.setattr(planning, "build", compiled)
    monkeypatch.setattr(planning, "bound", lambda *_: UNKNOWN)
    compiled(trace(question.program), 0.0, "")
    limit = answers.pop() / 2 / GIB
    chip = replace(V5E, hbm_gib=limit)
    said: list[str] = []
    made = plan(tools.ask(e, chip), tools.rebuilder(e, chip), said.append)
    assert not made.fits
    assert made.hbm.short == pytest.approx(limit)
    assert len(answers) == 1 + len(made.tried)
    assert len(made.changes) == 3
    assert all(t.fits and t.peak_gib <= limit for t in made.changes)
    assert {t.peak_gib for t in made.tried} == {size / GIB for size in answers[1:]}
    assert any("execution.remat" in t.change.words for t in made.changes)
    assert len([line for line in said if line.startswith("trying")]) == len(made.tried)
    assert any("DOES NOT FIT" in line for line in page(made))


@pytest.mark.parametrize(
    ("gib", "told"), [(12.345, "12.3 GiB"), (0.5, "512 MiB"), (0.0, "0 B"), (2e-6, "2.1 KiB")]
)
def test_a_size_is_told_in_its_own_unit(gib, told):
    assert size(gib) == told
