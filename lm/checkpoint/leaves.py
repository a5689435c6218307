"""The leaves of a state by name, as they are written to disk and put back.

On disk a state is flat: ``trainable.blocks_0.block_0.mixer.query.w`` to its array.  So a part of it
can be read without building the rest, and nothing depends on how Optax nests its tuples.  Typed
PRNG keys are written as their words.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array

from lm.checkpoint.integrity import Digest

Tree = Any
"""Any pytree of arrays, or of what describes them (shape, dtype, sharding)."""


def named_leaves(tree: Tree) -> dict[str, Any]:
    """The leaves by dotted name; fields, keys and positions alike are parts of it."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if len(leaves) != len(jax.tree.leaves(tree)):
        raise ValueError("two leaves of the state have one name: a key holds a dot")
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key, or describes one."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def kind_of(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Dtype and global shape as the state has them, which is what a digest records."""
    return str(leaf.dtype), tuple(leaf.shape)


def as_written(leaf: Any) -> Array:
    """The array that is written for a leaf."""
    return jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf)


def as_stored(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of the array to read for an (abstract) leaf.

    A leaf without a sharding is read onto the first device.
    """
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    plain = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    stored = jax.eval_shape(jax.random.key_data, plain) if is_key(leaf) else plain
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)


def from_stored(leaf: Any, array: Array) -> Array:
    """The leaf, such as the (abstract) ``leaf`` describes, from the array that was read."""
    if not is_key(leaf):
        return array
    wrap = jax.jit(jax.random.wrap_key_data, static_argnames="impl")
    return wrap(array, impl=jax.random.key_impl(jnp.zeros((), leaf.dtype)))


def differences(stored: Mapping[str, Digest], wanted: Mapping[str, Any]) -> list[str]:
    """What keeps the stored leaves from being the wanted ones, a line for each leaf."""
    lines: list[str] = []
    for name, leaf in wanted.items():
        dtype, shape = kind_of(leaf)
        if name not in stored:
            lines.append(f"{name} {shape} is not in the checkpoint")
        elif (found := stored[name]).dtype != dtype or found.shape != shape:
            lines.append(f"{name} is {found.dtype} {found.shape} there and {dtype} {shape} here")
    lines += [
        f"{name} {stored[name].shape} has no place here" for name in stored if name not in wanted
    ]
    return lines
