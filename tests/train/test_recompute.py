"""A step computed twice: bits that differ are found on the device that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.objectives.causal import CausalLm
from lm.optim.adamw import AdamW
from lm.optim.schedule import Constant
from lm.parallel.mesh import Mesh
from lm.parallel.place import to_global
from lm.train.guarded import Guarded
from lm.train.program import build_program
from lm.train.recompute import CorruptionError, Recompute
from lm.train.step import Training
from tests.train.tiny import LENGTH, ROWS, place, tiny_gpt2, uneven_batch


def begun(mesh: Mesh, devices: int):
    """A program, its compiled step, a state and a batch."""
    training = Training(steps=9, sequences=ROWS, length=LENGTH)
    adam = AdamW(schedule=Constant(peak=1e-2))
    program = build_program(place(tiny_gpt2(), mesh, devices), CausalLm(), adam, training)
    compiled = program.step.lower(program.state, program.batch).compile()
    batch = to_global(uneven_batch(), program.batch)
    return program, compiled, program.init(jax.random.key(0)), batch


@pytest.fixture(scope="module")
def spread():
    return begun(Mesh(data=2, fsdp=4), 8)


def flipped(leaf: jax.Array, device: int) -> jax.Array:
    """The same array, but for the lowest bit of one element on one device alone."""
    parts = []
    for shard in leaf.addressable_shards:
        values = np.array(shard.data)
        if shard.device.id == device:
            values.reshape(-1).view(np.uint32)[0] ^= 1
        parts.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


class Faulty:
    """A compiled step that computes wrongly the second time, on one device, in one leaf."""

    def __init__(self, compiled, leaf: str, device: int) -> None:
        self.compiled, self.leaf, self.device, self.calls = compiled, leaf, device, 0

    def __call__(self, state, batch):
        after, metrics = self.compiled(state, batch)
        self.calls += 1
        if self.calls == 2:
            bias = flipped(after.trainable["embedding"]["table"], self.device)
            table = after.trainable["embedding"] | {"table": bias}
            after = after._replace(trainable={**after.trainable, "embedding": table})
        return after, metrics


def test_the_step_is_the_one_that_is_not_computed_twice_and_the_state_is_used_up(spread):
    program, compiled, _, batch = spread
    given = program.init(jax.random.key(0))
    once, metrics = compiled(given, batch)
    again = program.init(jax.random.key(0))
    twice, told = Recompute(compiled, program.placed.mesh)(1, again, batch)
    for a, b in zip(jax.tree.leaves((once, metrics)), jax.tree.leaves((twice, told)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert jax.tree.leaves(again.trainable)[0].is_deleted()


@pytest.mark.parametrize("device", [0, 5])
def test_one_bit_on_one_device_is_found_and_the_device_and_leaf_are_named(spread, device):
    """Also where other devices hold the same part and have it right."""
    program, compiled, _, batch = spread
    names = list(program.state.trainable)
    assert "embedding" in names, names
    check = Recompute(Faulty(compiled, "embedding", device), program.placed.mesh)
    with pytest.raises(CorruptionError) as caught:
        check(7, program.init(jax.random.key(0)), batch)
    told = str(caught.value)
    found = program.placed.mesh.devices.reshape(-1)
    assert device in [d.id for d in found]
    assert f"on 1 of 8 devices: device {device} (process 0): " in told
    assert "trainable.embedding.table (1 elements)" in told
    assert "step 7 was computed twice" in told


def test_only_every_so_many_steps_are_computed_twice():
    program, compiled, state, batch = begun(Mesh(fsdp=1), 1)
    calls = []

    def step(*given):
        calls.append(len(given))
        return compiled(*given)

    guarded = Guarded(step, program.placed.mesh, start=3, recompute_every=4)
    counts = []
    for _ in range(6):  # steps 4 to 9
        calls.clear()
        state, _ = guarded(state, batch)
        counts.append(len(calls))
    assert counts == [2, 1, 1, 1, 2, 1]
