"""A state like the one that is trained, saved as a run saves it; and harm done to its files."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.checkpoint.record import make_record


class State(NamedTuple):
    step: Any
    trainable: Any
    frozen: Any
    optimizer: Any
    key: Any


class Files:
    """A tokenizer as the store sees it."""

    def __init__(self, error=None):
        self.error = error

    def save(self, folder):
        if self.error is not None:
            raise self.error
        (folder / "tokenizer.json").write_text('{"kind": "bytes"}')


def spread(tree, shape=(4, 2), spec=("fsdp", "tensor")):
    """Matrices split over the mesh, the rest replicated."""
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def place(leaf):
        own = P(*spec) if leaf.ndim == 2 else P()
        return jax.device_put(leaf, NamedSharding(mesh, own))

    return jax.tree.map(place, tree)


@functools.cache
def make_state(seed=0, width=64):
    key, rng = jax.random.key(seed), np.random.default_rng(seed)

    def draw(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32)).astype(dtype)

    params = {
        "blocks_0": {
            "block_0": {
                "mixer": {"query": {"w": draw(2 * width, width)}},
                "norm": {"scale": draw(width, dtype=jnp.bfloat16)},
            }
        },
        "embedding": {"table": draw(64, width, dtype=jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return spread(State(jnp.int32(seed), params, {}, optimizer, key))


def abstract(tree):
    def shape_of(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(shape_of, tree)


def bits(tree):
    def raw(leaf):
        keyed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if keyed else leaf).tobytes()

    return jax.tree.map(raw, tree)


def save(store, step, state, *, error=None, position=0, files=None):
    store.save(
        step,
        state,
        data={"position": position, "skipped": [[3, 5]]},
        experiment={"kind": "Experiment", "name": "x"},
        record=make_record(step=step, tokens=1, parameters=2),
        tokenizer=files or Files(error),
    )


def flip(path, place, bit=0):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(bytes(raw))


def holding(step, array):
    """The file of a step that holds the bytes of (the first shard of) an array, and where."""
    needle = np.asarray(array.addressable_shards[0].data).tobytes()
    for path in sorted((step / "state").rglob("*")):
        if path.is_file() and (place := path.read_bytes().find(needle)) >= 0:
            return path, place
    raise AssertionError("no file holds it")
