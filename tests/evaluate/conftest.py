"""A small model on any mesh, with the same loud weights everywhere."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from lm.batch import Leaf, Params
from lm.layers.execution import Execution
from lm.models.gpt2 import gpt2_tiny
from lm.models.llama import llama_tiny
from lm.parallel.mesh import Mesh, Parallel
from lm.train.placed import Placed, place_model

MakePlaced = Callable[..., tuple[Placed, Params]]
LENGTH = 24
VOCABULARY = 320
MODELS = {"llama": llama_tiny(VOCABULARY), "gpt2": gpt2_tiny(VOCABULARY, LENGTH)}


@pytest.fixture(scope="session")
def make_placed() -> MakePlaced:
    def make(
        mesh: Mesh, devices: int = 1, family: str = "llama", dtype: str = "float32"
    ) -> tuple[Placed, Params]:
        execution = Execution(compute_dtype=dtype)  # pyright: ignore[reportArgumentType]
        parallel = Parallel(mesh=mesh)
        placed = place_model(MODELS[family], execution, parallel, jax.devices()[:devices])
        rng = np.random.default_rng(3)

        def draw(leaf: Leaf, shape: jax.ShapeDtypeStruct) -> jax.Array:
            scale = 1.0 if leaf.kind == "table" else 1.5 / np.sqrt(leaf.fan_in)
            base = 1.0 if leaf.kind == "norm" else 0.0
            values = (base + scale * rng.normal(size=shape.shape)).astype(np.float32)
            return jax.make_array_from_callback(shape.shape, shape.sharding, lambda i: values[i])

        return placed, jax.tree.map(draw, placed.model.leaves, placed.params)

    return make


@pytest.fixture(scope="session")
def documents() -> list[np.ndarray]:
    """Of lengths from 1 token to several rows."""
    rng = np.random.default_rng(0)
    sizes = [1, 2, 3, LENGTH, LENGTH + 1, LENGTH + 2, 2 * LENGTH + 1, 150, *rng.integers(2, 70, 20)]
    return [
        np.concatenate([[256], rng.integers(0, 256, max(n - 2, 0)), [257]])[:n].astype(np.uint16)
        for n in sizes
    ]
