"""What a setting needs, by formula: against what is built and compiled."""

import importlib.util

import pytest

from lm.cli.asking import Asking
from lm.cli.search import with_setting
from lm.errors import ShardingError
from lm.layers.execution import Execution
from lm.models.llama import llama
from lm.parallel.mesh import Mesh
from lm.plan.analytic import Habit, estimate, kind, lay, learned
from lm.plan.hardware import V5E, read_slice
from lm.plan.memory import GIB, shards
from lm.plan.planning import plan
from lm.plan.report import to_json
from lm.plan.search import traced, undominated
from lm.plan.settings import Keeping, Setting
from lm.train.step import Training

BLOCK = Keeping("block", ())


def setting(mesh, keeping=BLOCK, microbatches=1, sequences=16):
    return Setting(mesh, keeping, microbatches, sequences)


FEW = ((), ("qkv",), ("gate", "up"), ("qkv", "attention", "out", "gate", "up"))


@pytest.fixture(scope="module")
def run(tools):
    e = tools.experiment(execution=Execution(scan="scan", remat="block"))
    question = tools.ask(e)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.plan.settings.SAVES", FEW)
        ways = traced(e.execution, setting(Mesh(fsdp=8)), tools.asker(e))
    return e, tools.subject(e, question, V5E), {k.keeping: k for k in ways}


@pytest.fixture(scope="module")
def made(run, tools, quickly):
    return plan(tools.ask(run[0]), tools.rebuilder(run[0]))


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh(fsdp=8),
        Mesh(data=8, fsdp=1),
        Mesh(data=2, fsdp=4),
        Mesh(fsdp=4, tensor=2),
        Mesh(fsdp=2, context=2, tensor=2),
    ],
    ids=str,
)
def test_states_are_those_of_the_built_program(run, tools, wired, mesh):
    e, subject, _ = run
    built = shards(tools.asker(e)(setting(mesh)).program)
    laid = lay(subject, mesh)
    assert laid.held.parameters == built.parameters
    assert laid.held.gradients == built.gradients
    # Counters and what is replicated differ by a few bytes.
    assert laid.held.optimizer == pytest.approx(built.optimizer, rel=0.01)


def test_weights_send_what_the_compiled_step_sends(run, made, wired):
    """On processors the compiled step gathers and scatters as it is written."""
    _, subject, ways = run
    sent = sum(r.wire_gib_per_step for r in made.collectives) * GIB
    guess = estimate(subject, lay(subject, Mesh(fsdp=8)), setting(Mesh(fsdp=8)), ways[BLOCK])
    assert guess.bound.ici * wired == pytest.approx(sent, rel=0.05)


def test_what_is_kept_and_computed_again_is_what_a_plan_tells(run, made, wired):
    e, subject, ways = run
    mesh = Mesh(fsdp=8)
    guess = estimate(subject, lay(subject, mesh), setting(mesh), ways[BLOCK])
    assert guess.kept / GIB == pytest.approx(made.hbm.activations, rel=1e-6)
    again = ways[BLOCK].flops * e.training.tokens_per_step
    assert again == pytest.approx(made.recomputed_flops, rel=1e-6)


def test_pieces_save_memory_and_send_more(run, wired):
    _, subject, ways = run
    mesh = Mesh(fsdp=8)
    laid = lay(subject, mesh)
    one, two = (estimate(subject, laid, setting(mesh, microbatches=n), ways[BLOCK]) for n in (1, 2))
    assert two.kept == one.kept / 2
    assert two.bound.ici == pytest.approx(2 * one.bound.ici, rel=0.02)


def test_keeping_more_needs_more_memory_and_less_time(run, wired):
    _, subject, ways = run
    mesh = Mesh(fsdp=8)
    laid = lay(subject, mesh)
    by_memory = sorted(ways.values(), key=lambda k: k.bytes)
    assert len(by_memory) > 2
    guesses = [estimate(subject, laid, setting(mesh, k.keeping), k) for k in by_memory]
    compute = [g.bound.compute for g in guesses]
    assert compute == sorted(compute, reverse=True)
    assert guesses[0].peak < guesses[-1].peak


def test_a_way_that_keeps_more_and_saves_nothing_is_left_out(run):
    _, _, ways = run
    best = min(ways.values(), key=lambda k: k.bytes)
    worse = best._replace(keeping=Keeping("nothing", ()), bytes=best.bytes * 2)
    same = best._replace(keeping=Keeping("projections", ()))
    assert undominated([best, worse, same]) == [best]
    assert undominated([worse, best]) == [worse, best]  # the run's own stays


def test_a_mesh_that_does_not_divide_is_refused(run):
    _, subject, _ = run
    with pytest.raises(ShardingError):
        lay(subject, Mesh(fsdp=1, tensor=8))


def test_what_a_compile_taught_gives_its_figures_back(run, wired):
    _, subject, ways = run
    mesh = Mesh(fsdp=8)
    args = subject, lay(subject, mesh), setting(mesh), ways[BLOCK]
    plain = estimate(*args)
    found = {"ici": 2 * plain.bound.ici, "dcn": 0.0, "blocking": 0.5 * plain.bound.ici}
    habit = learned(plain.bound, found)
    assert habit == Habit(pytest.approx(2.0), pytest.approx(0.75))
    again = estimate(*args, habit)
    assert again.bound.ici == pytest.approx(found["ici"])
    assert again.bound.blocking == pytest.approx(found["blocking"])
    assert learned(plain.bound, {"ici": None, "dcn": None, "blocking": None}) is None


def test_a_mesh_is_known_by_the_axes_that_it_splits():
    assert kind(Mesh(data=2, fsdp=4)) == ("data", "fsdp")
    assert kind(Mesh(data=1, fsdp=8, slices=2)) == ("slices", "fsdp")


@pytest.mark.tpu_compile
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("keeping", [BLOCK, Keeping("block", ("qkv", "gate", "up"))], ids=str)
def test_the_guess_is_near_what_a_tpu_compiler_says(tools, keeping):
    """A wide model of four blocks on four chips; each compile takes about 20 seconds."""
    asked, asking = read_slice("v5e:2x2"), Asking()
    e = tools.experiment(
        model=llama(8192, width=2048, blocks=4, num_heads=16, mlp=8192),
        training=Training(steps=1, sequences=16, length=2048),
        execution=Execution(scan="scan", compute_dtype="bfloat16", remat="block"),
    )
    one = setting(Mesh(fsdp=4), keeping)
    e = with_setting(e, one)
    question = asking.question(e, asked)
    subject = tools.subject(e, question, V5E)._replace(devices=asking.devices(asked))
    (kept, *_) = traced(e.execution, one, lambda s: asking.question(with_setting(e, s), asked))
    made = to_json(plan(question, asking.rebuild(e, asked)))
    guess = estimate(subject, lay(subject, one.mesh), one, kept)
    peak = made["hbm_gib"]["peak"] - made["hbm_gib"]["code"]
    assert 0.8 < guess.peak_gib / peak < 1.1
    assert guess.bound.compute == pytest.approx(made["bound_seconds"]["compute"], rel=0.01)
    assert guess.bound.ici == pytest.approx(made["bound_seconds"]["ici"], rel=0.2)
    assert guess.bound.step == pytest.approx(made["bound_seconds"]["step"], rel=0.2)
