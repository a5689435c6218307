"""A small model, an uneven batch, and its gradients on any mesh."""

from typing import Any, Literal

import jax
import numpy as np

from lm.batch import Batch, Loss, Params, Tokens
from lm.layers.execution import Execution
from lm.models.decoder import Decoder
from lm.models.gpt2 import gpt2
from lm.models.llama import llama
from lm.objectives.causal import CausalLm
from lm.parallel.mesh import Mesh, Parallel
from lm.parallel.place import to_global
from lm.train.placed import Placed, place_model
from lm.train.step import gradients

ROWS, LENGTH, VOCAB = 8, 24, 64


def tiny_llama() -> Decoder:
    return llama(VOCAB, width=32, blocks=2, num_heads=4, num_kv_heads=2, mlp=64)


def tiny_gpt2(dropout: float = 0.1) -> Decoder:
    return gpt2(VOCAB, width=32, blocks=2, num_heads=4, length=LENGTH, dropout=dropout)


def uneven_batch(seed: int = 0) -> Batch:
    """Packed rows with weights that differ from row to row and token to token."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    cuts = rng.integers(3, LENGTH - 3, ROWS)
    places = np.arange(LENGTH)[None, :]
    segments = np.where(places < cuts[:, None], 1, 2).astype(np.int32)
    positions = np.where(places < cuts[:, None], places, places - cuts[:, None]).astype(np.int32)
    weights = rng.random((ROWS, LENGTH)) * np.arange(1, ROWS + 1)[:, None]
    return Batch(
        Tokens(ids[:, :-1], segments, positions),
        ids[:, 1:],
        weights.astype(np.float32),
        np.arange(ROWS, dtype=np.int32),
    )


def place(
    model: Decoder,
    mesh: Mesh,
    devices: int,
    execution: Execution | None = None,
    collectives: Literal["whole", "rings"] = "whole",
) -> Placed:
    parallel = Parallel(mesh=mesh, collectives=collectives)
    return place_model(model, execution or Execution(), parallel, jax.devices()[:devices])


def loss_and_gradients(
    placed: Placed, batch: Batch, microbatches: int = 1
) -> tuple[Loss, Params, Any]:
    """The summed loss, every raw gradient, and the compiled function, from the same start."""
    where = jax.tree.map(lambda x: x.sharding, placed.params)
    params = jax.jit(placed.model.init, out_shardings=where)(jax.random.key(0))
    given = to_global(batch, placed.batch(ROWS, LENGTH))
    function = jax.jit(gradients(placed, CausalLm(z_loss=1e-3), microbatches))
    compiled = function.lower(params, {}, jax.random.key(5), given).compile()
    found, loss = compiled(params, {}, jax.random.key(5), given)
    return jax.device_get(loss), jax.device_get(found), compiled
