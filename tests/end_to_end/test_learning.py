"""A small model learns what can be learned, and the same numbers every time."""

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
from lm.optim.schedule import Constant, Cosine
from lm.parallel.mesh import Mesh
from lm.parallel.place import to_global
from lm.train.program import build_program
from lm.train.step import Training
from tests.train.tiny import place

VOCAB = 64
MODEL = llama(VOCAB, width=32, blocks=2, num_heads=4, num_kv_heads=2, mlp=64)
GOLDEN = [
    4.6204,
    4.40055,
    3.92337,
    3.43727,
    3.21083,
    2.73885,
    2.48389,
    2.20781,
    2.00201,
    1.87707,
    1.7658,
    1.49007,
    1.39564,
    1.3349,
    1.25275,
    1.24902,
    1.15259,
    1.12659,
    1.1079,
    1.08769,
]
"""Losses of 20 steps; they move when what is computed moves, and then someone must say why."""


def losses(optimizer, steps: int, batches) -> list[float]:
    training = Training(steps=steps, sequences=8, length=32, seed=3)
    program = build_program(place(MODEL, Mesh(fsdp=1), 1), CausalLm(), optimizer, training)
    state, found = program.init(jax.random.key(training.seed)), []
    for _, batch in zip(range(steps), batches, strict=False):
        state, metrics = program.step(state, to_global(batch, program.batch))
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
    adam = AdamW(schedule=Constant(peak=1e-2, warmup=10), decay=0.0)
    found = losses(adam, 150, iter(lambda: noise, None))
    assert found[0] > np.log(VOCAB) - 0.2
    assert found[-1] < 0.1


def test_the_losses_of_twenty_steps_are_what_they_were():
    adam = AdamW(schedule=Cosine(peak=5e-3, warmup=4), decay=0.1)
    found = losses(adam, 20, stream(24))
    assert found == pytest.approx(GOLDEN, rel=1e-4)
