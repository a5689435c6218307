"""A small model learns what can be learned, and the same numbers every time."""

from functools import cache

import jax
import numpy as np
import pytest

from lm.batch import Batch
from lm.data.loader import Loader
from lm.data.mixture import Mixture, Weighted
from lm.data.synthetic import Synthetic
from lm.models.llama import llama
from lm.objectives.causal import CausalLm
from lm.optim.adamw import AdamW
from lm.optim.schedule import Constant
from lm.parallel.mesh import Mesh
from lm.parallel.place import to_global
from lm.train.program import build_program
from lm.train.step import Training
from tests.train.tiny import place

VOCAB = 64
MODEL = llama(VOCAB, width=32, blocks=2, num_heads=4, num_kv_heads=2, mlp=64)
GOLDEN = [
    4.6204,
    4.43019,
    4.04039,
    3.60881,
    3.40971,
    2.89407,
    2.56593,
    2.19373,
    1.86724,
    1.66943,
    1.37891,
    1.12505,
    0.90137,
    0.75711,
    0.60809,
    0.52678,
    0.41862,
    0.37327,
    0.32142,
    0.25054,
]
"""Losses of 20 steps; they move when what is computed moves, and then someone must say why."""


@cache
def program():
    """Compiled once for both tests."""
    adam = AdamW(schedule=Constant(peak=1e-2, warmup=10), decay=0.1, clip=1.0)
    training = Training(steps=150, sequences=8, length=32)
    return build_program(place(MODEL, Mesh(fsdp=1), 1), CausalLm(z_loss=1e-4), adam, training)


def losses(steps: int, batches) -> list[float]:
    state, found = program().init(jax.random.key(3)), []
    for _, batch in zip(range(steps), batches, strict=False):
        state, metrics = program().step(state, to_global(batch, program().batch))
        found.append(metrics["loss"])
    return [float(x) for x in found]


def stream(document_length: int):
    source = Synthetic(vocab_size=VOCAB, document_length=document_length)
    blend = Mixture(sources=(Weighted(source=source),)).build(32)
    loader = Loader(blend=blend, objective=CausalLm(), sequences=8, seed=0)
    return (loader.batch(8 * n) for n in range(10_000))


def test_a_tiny_model_learns_one_batch_of_noise_by_heart():
    """Targets that nothing predicts: only attention over what came before can tell them apart."""
    rng = np.random.default_rng(0)
    batch: Batch = next(stream(32))
    ids = rng.integers(0, VOCAB, (8, 33)).astype(np.int32)
    noise = batch._replace(inputs=batch.inputs._replace(ids=ids[:, :-1]), targets=ids[:, 1:])
    found = losses(150, iter(lambda: noise, None))
    assert found[0] > np.log(VOCAB) - 0.2
    assert found[-1] < 0.1


def test_the_losses_of_twenty_steps_are_what_they_were():
    found = losses(20, stream(24))
    assert found == pytest.approx(GOLDEN, rel=1e-4)
