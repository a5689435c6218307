"""Parts of a block, and the optimizer's state, wait in the host's memory: how, and not what."""

import importlib.util
from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm import assemble
from lm.data.mixture import Mixture, Weighted
from lm.data.synthetic import Synthetic
from lm.errors import ConfigError
from lm.experiment import Experiment
from lm.layers.execution import Execution
from lm.models.llama import llama
from lm.objectives.causal import CausalLm
from lm.optim.adamw import AdamW
from lm.optim.schedule import Constant
from lm.parallel.mesh import Mesh
from lm.parallel.place import to_global
from lm.plan.hardware import read_slice
from lm.plan.topology import devices_for
from lm.tokenizers.bytes import Bytes
from lm.train.memory import bytes_on_device
from lm.train.program import build_program
from lm.train.step import Training, gradients
from tests.train.tiny import LENGTH, ROWS, loss_and_gradients, place, tiny_llama, uneven_batch

ALL = ("qkv", "attention", "out", "gate", "up")
HOST, IN_HOST = "pinned_host", "S(5)"
"""The host's memory as JAX names it, and as a TPU's compiler marks what lies there."""


@cache
def on_the_device():
    return loss_and_gradients(place(tiny_llama(), Mesh(fsdp=1), 1), uneven_batch())


@pytest.mark.parametrize(
    ("mesh", "devices", "scan"),
    [(Mesh(fsdp=1), 1, "unroll"), (Mesh(fsdp=2, context=2, tensor=2), 8, "scan")],
    ids=["alone", "2x2x2"],
)
def test_loss_and_gradients_are_the_same_with_activations_in_the_host(mesh, devices, scan):
    execution = Execution(remat="block", offload=ALL, scan=scan)
    placed = place(tiny_llama(), mesh, devices, execution)
    loss, found, _ = loss_and_gradients(placed, uneven_batch())
    expected, gradients, _ = on_the_device()
    assert float(loss.total) == pytest.approx(float(expected.total), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize(("parts", "arrays"), [((), 0), (("up",), 1), (("qkv",), 3), (ALL, 7)])
def test_each_array_of_a_part_goes_to_the_host_once_and_comes_back_once(parts, arrays):
    execution = Execution(remat="block", offload=parts, scan="scan")
    placed = place(tiny_llama(), Mesh(fsdp=1), 1, execution)
    given = placed.params, {}, jax.random.key(0), placed.batch(ROWS, LENGTH)
    traced = str(jax.make_jaxpr(gradients(placed, CausalLm(), 1))(*given))
    assert traced.count("device_put") == 2 * arrays


def stepped(*, offload: bool, steps: int = 2):
    placed = place(tiny_llama(), Mesh(fsdp=2), 2)
    training = Training(steps=steps, sequences=ROWS, length=LENGTH)
    adam = AdamW(schedule=Constant(peak=1e-2))
    program = build_program(placed, CausalLm(), adam, training, offload_optimizer=offload)
    state, metrics = program.init(jax.random.key(0)), {}
    batch = to_global(uneven_batch(), program.batch)
    for _ in range(steps):
        state, metrics = program.step(state, batch)
    return state, metrics


def test_two_updates_are_the_same_with_the_optimizer_in_the_host():
    plain, there = stepped(offload=False), stepped(offload=True)
    assert float(there[1]["loss"]) == float(plain[1]["loss"])
    for a, b in zip(
        jax.tree.leaves(plain[0]._replace(key=None)),
        jax.tree.leaves(there[0]._replace(key=None)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(there[0].optimizer) if x.ndim}
    assert kinds == {HOST}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(there[0].trainable)} == {"device"}


def for_a_tpu(**how):
    e = Experiment(
        name="offload",
        model=llama(1024, width=512, blocks=8, num_heads=4, mlp=1024),
        tokenizer=Bytes(),
        data=Mixture(sources=(Weighted(source=Synthetic(vocab_size=512)),)),
        training=Training(steps=1, sequences=16, length=1024),
        optimizer=AdamW(schedule=Constant(peak=1e-3)),
        execution=Execution(compute_dtype="bfloat16", remat="block", **how),
    )
    program = assemble.program(e, devices_for(read_slice("v5e:2x2")))
    return program, program.step.lower(program.state, program.batch).compile()


@pytest.mark.tpu_compile
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[plan]'",
)
def test_on_a_tpu_what_is_offloaded_leaves_the_devices_memory():
    """By the compiler's own account: to the byte in the host, and gone from the device.

    Slow: two compiles of half a minute each.
    """
    parts = ("qkv", "up")
    program, kept = for_a_tpu(save=parts)
    _, left = for_a_tpu(offload=parts, offload_optimizer=True)
    here, there = kept.memory_analysis(), left.memory_analysis()
    activations = 8 * (4 * 1024) * (3 * 512 + 1024) * 2  # blocks, a device's tokens, widths, bf16
    moments = sum(bytes_on_device(x) for x in jax.tree.leaves(program.state.optimizer) if x.ndim)
    assert (here.host_temp_size_in_bytes, here.host_argument_size_in_bytes) == (0, 0)
    assert there.host_temp_size_in_bytes == activations
    assert there.host_argument_size_in_bytes == pytest.approx(moments, rel=1e-3)
    saved = here.argument_size_in_bytes - there.argument_size_in_bytes
    assert saved == there.host_argument_size_in_bytes
    assert there.temp_size_in_bytes < here.temp_size_in_bytes - activations / 3
    assert IN_HOST in left.as_text()
    assert IN_HOST not in kept.as_text()


@pytest.mark.parametrize("asked", [{"offload_optimizer": True}, {"offload": ("qkv",)}])
def test_a_device_that_cannot_reach_the_host_is_refused_in_words(asked):
    device = SimpleNamespace(
        device_kind="Toaster", addressable_memories=lambda: [SimpleNamespace(kind="device")]
    )
    with pytest.raises(ConfigError, match=r"Toaster offers device\. Leave both out"):
        assemble._check_host_memory(Execution(remat="block", **asked), device)
