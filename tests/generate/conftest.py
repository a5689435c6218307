"""Small models with weights large enough that their choices differ from place to place."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Leaf, Params, Tokens
from lm.layers.execution import Execution
from lm.models.decoder import Decoder, windowed
from lm.models.gpt2 import gpt2_tiny
from lm.models.llama import llama_tiny
from lm.models.model import Model

Built = tuple[Model, Params, int | None]
LENGTH = 48
"""Positions of the small GPT-2."""
VOCABULARY = 259
"""Ids of the byte tokenizer; the models' tables are padded to 320."""


def build(config: Decoder) -> Built:
    model = config.build(Execution())
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(3)

    def draw(leaf: Leaf, shape: jax.ShapeDtypeStruct) -> jax.Array:
        scale = 1.0 if leaf.kind == "table" else 2.0 / np.sqrt(leaf.fan_in)
        base = 1.0 if leaf.kind == "norm" else 0.0
        return jnp.asarray(base + scale * rng.normal(size=shape.shape), jnp.float32)

    return model, jax.tree.map(draw, model.leaves, shapes), config.positions


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """These tests compile much and compute little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def models() -> dict[str, Built]:
    llama = llama_tiny(vocab_size=320)
    return {
        "gpt2": build(gpt2_tiny(vocab_size=320, length=LENGTH)),
        "llama": build(llama),
        "window": build(windowed(llama, 7)),
    }


@pytest.fixture(scope="session")
def next_logits() -> Callable[[Built, list[list[int]]], np.ndarray]:
    """Logits after sequences of at most 64 tokens, by full forward passes."""

    def forward(model: Model, params: Params, ids: Any, last: Any) -> Any:
        rows, length = ids.shape
        places = jnp.broadcast_to(jnp.arange(length), ids.shape)
        tokens = Tokens(ids, (places <= last[:, None]).astype(jnp.int32), places)
        batch = Batch(tokens, ids, jnp.ones(ids.shape), jnp.arange(rows))
        hidden = model.apply(params, batch, None).hidden
        return model.logits(params)(hidden[jnp.arange(rows), last])

    jitted: dict[int, Any] = {}

    def of(built: Built, sequences: list[list[int]]) -> np.ndarray:
        model, params, context = built
        width = min(64, context or 64)
        if id(model) not in jitted:
            jitted[id(model)] = jax.jit(lambda p, i, n: forward(model, p, i, n))
        ids = np.zeros((len(sequences), width), np.int32)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
        last = np.asarray([len(s) - 1 for s in sequences])
        return np.asarray(jitted[id(model)](params, ids, last))

    return of
