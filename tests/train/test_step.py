"""Sharding and microbatches are how, not what: loss, raw gradients and updates stay the same."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.layers.execution import Execution
from lm.objectives.causal import CausalLm
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.parallel.explicit import Explicit
from lm.parallel.mesh import Mesh
from lm.parallel.place import to_global
from lm.train import step as step_module
from lm.train.memory import bytes_on_device
from lm.train.program import build_program
from lm.train.step import Training
from tests.train.tiny import (
    LENGTH,
    ROWS,
    loss_and_gradients,
    place,
    tiny_gpt2,
    tiny_llama,
    uneven_batch,
)

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}
CASES = [
    ("llama", Mesh(fsdp=8), 8, Execution(), 1),
    ("llama", Mesh(data=2, fsdp=2, tensor=2), 8, Execution(remat="block"), 2),
    ("gpt2", Mesh(data=2, fsdp=2, tensor=2), 8, Execution(), 1),
    ("gpt2", Mesh(data=4, fsdp=1), 4, Execution(remat="projections", scan="scan"), 2),
    ("gpt2", Mesh(fsdp=2), 2, Execution(scan="scan"), 4),
    ("llama", Mesh(fsdp=1, tensor=2), 2, Execution(attention_kernel="blocked"), 1),
    ("gpt2", Mesh(fsdp=1), 1, Execution(remat="block"), 8),
    ("llama", Mesh(fsdp=8, torus=(2, 4)), 8, Execution(remat="block", scan="scan"), 1),
    ("gpt2", Mesh(fsdp=4, tensor=2, torus=(2, 2, 2)), 8, Execution(), 1),
    ("llama", Mesh(fsdp=1, context=4), 4, Execution(remat="projections"), 2),
    ("gpt2", Mesh(fsdp=2, context=2, tensor=2), 8, Execution(remat="block"), 1),
    ("llama", Mesh(slices=2, fsdp=4, torus=(2, 2)), 8, Execution(), 1),
    ("llama", Mesh(slices=2, data=1, fsdp=2, context=2), 8, Execution(scan="scan"), 1),
    ("gpt2", Mesh(fsdp=1), 1, Execution(remat="block", mlp_pieces=4, vocab_pieces=8), 1),
    ("llama", Mesh(fsdp=4), 4, Execution(remat="attention", mlp_pieces=2, scan="scan"), 2),
    ("gpt2", Mesh(fsdp=2, context=2, tensor=2), 8, Execution(remat="block", mlp_pieces=4), 1),
    ("llama", Mesh(fsdp=4, tensor=2, torus=(2, 2, 2)), 8, Execution(vocab_pieces=4), 1),
]
NAMES = [
    "fsdp8",
    "2x2x2-remat-2",
    "gpt2-2x2x2",
    "data4-scan-2",
    "fsdp2-4",
    "tensor2",
    "alone-8",
    "torus2x4",
    "gpt2-torus2x2x2",
    "context4-2",
    "gpt2-context2x2x2",
    "slices2-torus",
    "slices2-context2",
    "alone-pieces",
    "fsdp4-pieces-2",
    "gpt2-context2-pieces",
    "torus-vocabulary",
]
RINGS = [
    ("llama", Mesh(fsdp=8), Execution(remat="block", scan="scan")),
    ("gpt2", Mesh(fsdp=4, tensor=2, torus=(2, 2, 2)), Execution(remat="block", mlp_pieces=2)),
    ("llama", Mesh(fsdp=4, context=2), Execution(vocab_pieces=2)),
]


@cache
def alone(model: str):
    return loss_and_gradients(place(MODELS[model](), Mesh(fsdp=1), 1), uneven_batch())


def differences(one, other) -> dict[str, float]:
    """Largest difference of each leaf, relative to the leaf's largest entry.

    A leaf whose true gradient is zero (a key's bias: softmax does not see a shift) holds nothing
    but rounding; it is measured against the largest gradient of all.
    """
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(one))
    found = {}
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        scale = float(np.abs(a).max())
        scale = scale if scale > 1e-5 * largest else largest
        found[jax.tree_util.keystr(path)] = float(np.abs(a - b).max()) / scale
    return found


def norm(tree) -> float:
    return float(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in jax.tree.leaves(tree))))


@pytest.mark.parametrize(("model", "mesh", "devices", "execution", "pieces"), CASES, ids=NAMES)
def test_sharded_loss_and_raw_gradients_equal_those_of_one_device(
    model, mesh, devices, execution, pieces
):
    """Raw gradients, because clipping and AdamW hide a constant factor."""
    loss, found, _ = alone(model)
    placed = place(MODELS[model](), mesh, devices, execution)
    spread_loss, spread, _ = loss_and_gradients(placed, uneven_batch(), pieces)
    assert float(spread_loss.total) == pytest.approx(float(loss.total), rel=1e-5)
    assert float(spread_loss.weight) == pytest.approx(float(loss.weight), rel=1e-6)
    wrong = {name: gap for name, gap in differences(found, spread).items() if gap > 1e-5}
    assert not wrong
    assert norm(spread) == pytest.approx(norm(found), rel=1e-5)


@pytest.mark.parametrize(("model", "mesh", "execution"), RINGS, ids=["8", "torus", "context"])
def test_weights_that_travel_in_rings_give_the_same_gradients(model, mesh, execution):
    loss, found, _ = alone(model)
    placed = place(MODELS[model](), mesh, 8, execution, "rings")
    spread_loss, spread, compiled = loss_and_gradients(placed, uneven_batch())
    assert float(spread_loss.total) == pytest.approx(float(loss.total), rel=1e-5)
    wrong = {name: gap for name, gap in differences(found, spread).items() if gap > 1e-5}
    assert not wrong
    assert "collective-permute" in compiled.as_text()


@pytest.mark.parametrize("fault", ["twice", "missing sum"])
def test_a_planted_fault_in_the_gradients_is_seen(monkeypatch, fault):
    """The comparison above can fail: a factor of two, or a sum left out, turns it red."""
    right = Explicit.sum_gradients

    def wrong(self, gradients, leaves):
        if fault == "missing sum":
            return gradients
        return jax.tree.map(lambda g: g * 2, right(self, gradients, leaves))

    monkeypatch.setattr(Explicit, "sum_gradients", wrong)
    placed = place(tiny_llama(), Mesh(data=2, fsdp=2), 4)
    _, spread, _ = loss_and_gradients(placed, uneven_batch())
    assert max(differences(alone("llama")[1], spread).values()) > 1e-2


def test_gradients_leave_the_compiled_step_by_reduce_scatter():
    """Every weight that fsdp splits: one reduce-scatter each, and no all-reduce of its size."""
    placed = place(tiny_llama(), Mesh(fsdp=8), 8, Execution(scan="scan"))
    program = build_program(
        placed, CausalLm(), _sgd(), Training(steps=2, sequences=ROWS, length=LENGTH)
    )
    text = program.step.lower(program.state, program.batch).compile().as_text()
    assert len(re.findall(r" reduce-scatter(?:-start)?\(", text)) >= 8  # 7 in a block, 2 tables
    split = [x for x in jax.tree.leaves(program.state.trainable) if x.sharding.spec[-2:] != ()]
    smallest = min(x.size for x in split if not x.sharding.is_fully_replicated)
    summed = re.findall(r"= \(?f32\[([\d,]*)\][^=]* all-reduce(?:-start)?\(", text)
    sizes = [int(np.prod([int(n) for n in s.split(",") if n])) for s in summed]
    assert max(sizes, default=0) < smallest


def test_two_sgd_steps_end_in_the_same_weights_on_every_mesh():
    def after(mesh, devices, pieces):
        placed = place(tiny_gpt2(), mesh, devices)
        training = Training(steps=2, sequences=ROWS, length=LENGTH, microbatches=pieces, seed=1)
        program = build_program(placed, CausalLm(z_loss=1e-3), _sgd(), training)
        state = program.init(jax.random.key(1))
        norms = []
        for seed in (0, 1):
            state, metrics = program.step(state, to_global(uneven_batch(seed), program.batch))
            norms.append(float(metrics["gradient_norm"]))
        return jax.device_get(state.trainable), norms

    weights, norms = after(Mesh(fsdp=1), 1, 1)
    spread, spread_norms = after(Mesh(data=2, fsdp=2, tensor=2), 8, 2)
    assert spread_norms == pytest.approx(norms, rel=1e-5)
    assert max(differences(weights, spread).values()) < 1e-5


def test_the_state_is_made_where_it_lives_and_the_step_keeps_it_there():
    placed = place(tiny_llama(), Mesh(fsdp=4, tensor=2), 8)
    training = Training(steps=2, sequences=ROWS, length=LENGTH)
    program = build_program(placed, CausalLm(), _sgd(), training)
    state = program.init(jax.random.key(0))
    given = to_global(uneven_batch(), program.batch)
    after, _ = program.step(state, given)
    for want, have in zip(jax.tree.leaves(program.state), jax.tree.leaves(after), strict=True):
        assert have.sharding.is_equivalent_to(want.sharding, have.ndim)
        shard = want.sharding.shard_shape(want.shape)
        assert all(s.data.shape == shard for s in have.addressable_shards)
    assert jax.tree.leaves(state.trainable)[0].is_deleted()  # donated


def test_bfloat16_compute_keeps_float32_master_weights_and_comes_close():
    loss, _, _ = alone("llama")
    narrow = place(tiny_llama(), Mesh(fsdp=8), 8, Execution(compute_dtype="bfloat16"))
    got, found, compiled = loss_and_gradients(narrow, uneven_batch())
    assert float(got.total) == pytest.approx(float(loss.total), rel=2e-2)
    assert {str(x.dtype) for x in jax.tree.leaves(found)} == {"float32"}
    gathers = re.findall(r"= (\w+)\[[\d,]*\]\S* all-gather\(", compiled.as_text())
    assert gathers


SKIPPING = [(Mesh(fsdp=1), 1, 1), (Mesh(fsdp=1), 1, 2), (Mesh(data=2, fsdp=2, tensor=2), 8, 2)]


@cache
def adam_program(mesh, devices, pieces=1):
    return adam(place(tiny_gpt2(), mesh, devices), pieces)


def adam(placed, pieces=1):
    training = Training(steps=9, sequences=ROWS, length=LENGTH, microbatches=pieces)
    return build_program(placed, CausalLm(), AdamW(schedule=Cosine(peak=1e-2, warmup=4)), training)


def parts(state):
    """The leaves of a state as numpy, the key as its words."""
    return jax.device_get(jax.tree.leaves(state._replace(key=jax.random.key_data(state.key))))


@pytest.mark.parametrize(("mesh", "devices", "pieces"), SKIPPING, ids=["1", "1-pieces", "8"])
@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e38])
def test_a_step_with_bad_numbers_changes_nothing_but_its_own_number(mesh, devices, pieces, bad):
    """One weight of one row is bad; 1e38 leaves the loss finite and the norm overflows.

    The step after it is the one that would have come anyway: schedule and moments go by updates.
    """
    program = adam_program(mesh, devices, pieces)
    good = to_global(uneven_batch(), program.batch)
    host = uneven_batch(1)
    host.weights[5, 7] = bad
    state, _ = program.step(program.init(jax.random.key(0)), good)
    before = parts(state)
    rest = parts(state._replace(step=state.step + 1))
    state, metrics = program.step(state, to_global(host, program.batch))
    told = {name: float(value) for name, value in metrics.items()}
    assert told["skipped"] == 1
    assert not np.isfinite(told["loss"] + told["gradient_norm"])
    for a, b in zip(rest, parts(state), strict=True):
        assert a.tobytes() == b.tobytes()
    assert before[0] + 1 == int(state.step)
    state, metrics = program.step(state, good)
    assert float(metrics["skipped"]) == 0
    assert float(metrics["learning_rate"]) == pytest.approx(2 * 1e-2 / 4)  # of the second update
    counts = optax.tree_utils.tree_get_all_with_path(state.optimizer, "count")
    assert {int(count) for _, count in counts} == {2}


def test_limits_leave_an_update_out_and_none_at_all_changes_no_bit():
    program = adam_program(Mesh(fsdp=2), 2)
    batch = to_global(uneven_batch(), program.batch)

    def after(*limits):
        given = [to_global(np.asarray(x, np.float32), program.limits) for x in limits]
        return program.step(program.init(jax.random.key(0)), batch, *given)

    free, metrics = after()
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    for limits in ([np.inf, np.inf], [loss, norm]):
        same, told = after(limits)
        assert float(told["skipped"]) == 0
        for a, b in zip(parts(free), parts(same), strict=True):
            assert a.tobytes() == b.tobytes()
    start = parts(program.init(jax.random.key(0)))
    for limits in ([np.nextafter(np.float32(loss), 0), norm], [loss, norm * 0.999]):
        kept, told = after(limits)
        assert float(told["skipped"]) == 1
        for a, b in zip(start[1:], parts(kept)[1:], strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("devices", [1, 8])
def test_leaving_updates_out_holds_no_second_state(monkeypatch, devices):
    """Beside a step that always updates: at most the gradients more, which wait for their norm.

    AdamW's state is three times as large.
    """

    def compiled():
        placed = place(tiny_llama(), Mesh(fsdp=devices), devices, Execution(scan="scan"))
        program = adam(placed)
        built = program.step.lower(program.state, program.batch).compile()
        return built.memory_analysis(), sum(
            map(bytes_on_device, jax.tree.leaves(program.state.trainable))
        )

    guarded, gradients = compiled()
    monkeypatch.setattr(step_module, "_is_good", lambda *_: jnp.bool_(True))
    bare, _ = compiled()
    assert guarded.alias_size_in_bytes == bare.alias_size_in_bytes  # donated all the same
    assert guarded.temp_size_in_bytes - bare.temp_size_in_bytes <= 1.1 * gradients


class _Sgd:
    """Plain descent: the update shows the gradient itself."""

    def build(self, total_steps, leaves):
        del total_steps, leaves
        return optax.sgd(1e-2)

    def learning_rate(self, total_steps):
        del total_steps
        return lambda _: 1e-2


def _sgd():
    return _Sgd()
