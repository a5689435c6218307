"""How weights travel to where they are used, and their gradients back: one mesh axis at a time."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lm.parallel.ring import gather, scatter

LANES = 128


class Travel(NamedTuple):
    """How a weight and its gradient travel."""

    stages: tuple[tuple[int, str], ...]
    """(dimension, mesh axis) of each gather, in order; the last one moves the most."""
    apart: bool
    """Whether the rows of the weight cannot be written in another order."""
    together: bool
    """Whether it may travel in one piece with others: no automatic axis splits it."""
    compute_dtype: Any
    reduce_dtype: Any
    rings: frozenset[str]
    """Mesh axes along which it goes from neighbour to neighbour."""

    @property
    def first(self) -> tuple[str, ...]:
        """The mesh axes along which it travels together with others."""
        dimensions = {dimension for dimension, _ in self.stages}
        axes = tuple(axis for _, axis in self.stages[:-1])
        return axes if self.together and len(dimensions) == 1 and not self.rings & {*axes} else ()


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(shards: tuple[Array, ...], ways: tuple[Travel, ...]) -> tuple[Array, ...]:
    """Weights made whole; their gradients leave by reduce-scatters over the same axes.

    All stages but the last, which move few bytes, are made for all weights at once: they are few
    messages, and a compiler that runs one gather beside each large product does not spend a
    product on a small one.
    """
    made = [x.astype(way.compute_dtype) for x, way in zip(shards, ways, strict=True)]
    for axes, members in _groups(shards, ways):
        packed = _packed([made[n] for n in members], [ways[n] for n in members])
        for axis in axes:
            packed = lax.all_gather(packed, axis, tiled=True)
        for n, x in zip(members, _unpacked(packed, made, ways, members), strict=True):
            made[n] = x
    for n, way in enumerate(ways):
        for dimension, axis in way.stages[len(way.first) :]:
            made[n] = _gathered(made[n], way, dimension, axis)
    return tuple(made)


def _forward(
    shards: tuple[Array, ...], ways: tuple[Travel, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    return gathered(shards, ways), tuple(jnp.zeros((0,), x.dtype) for x in shards)


def _backward(
    ways: tuple[Travel, ...], likes: tuple[Array, ...], gradients: tuple[Array, ...]
) -> tuple[tuple[Array, ...]]:
    made = [g.astype(way.reduce_dtype) for g, way in zip(gradients, ways, strict=True)]
    for n, way in enumerate(ways):
        for dimension, axis in reversed(way.stages[len(way.first) :]):
            if axis in way.rings:
                moved = scatter(jnp.moveaxis(made[n], dimension, 0), axis)
                made[n] = jnp.moveaxis(moved, 0, dimension)
            else:
                made[n] = scattered(made[n], axis, dimension, apart=way.apart)
    for axes, members in _groups(made, ways):
        packed = _packed([made[n] for n in members], [ways[n] for n in members])
        for axis in reversed(axes):
            packed = scattered(packed, axis, 0, apart=True)
        for n, x in zip(members, _unpacked(packed, made, ways, members), strict=True):
            made[n] = x
    return (tuple(x.astype(like.dtype) for x, like in zip(made, likes, strict=True)),)


gathered.defvjp(_forward, _backward)


def _groups(
    parts: Sequence[Array], ways: Sequence[Travel]
) -> list[tuple[tuple[str, ...], list[int]]]:
    """Axes, and which weights travel along them together: those split into equally many rows."""
    found: dict[Any, list[int]] = defaultdict(list)
    for n, (x, way) in enumerate(zip(parts, ways, strict=True)):
        if way.first:
            found[way.first, x.shape[way.stages[0][0]]].append(n)
    return [(axes, members) for (axes, _), members in found.items()]


def _packed(parts: Sequence[Array], ways: Sequence[Travel]) -> Array:
    """[rows, all the rest], one beside the other."""
    rows = [jnp.moveaxis(x, w.stages[0][0], 0) for x, w in zip(parts, ways, strict=True)]
    return jnp.concatenate([x.reshape(len(x), -1) for x in rows], axis=1)


def _unpacked(
    packed: Array, parts: Sequence[Array], ways: Sequence[Travel], members: Sequence[int]
) -> list[Array]:
    """The parts again, of as many rows as there are now."""
    found: list[Array] = []
    begin = 0
    for n in members:
        dimension = ways[n].stages[0][0]
        rest = [size for d, size in enumerate(parts[n].shape) if d != dimension]
        end = begin + parts[n].size // parts[n].shape[dimension]
        found.append(jnp.moveaxis(packed[:, begin:end].reshape(-1, *rest), 0, dimension))
        begin = end
    return found


def _gathered(x: Array, way: Travel, dimension: int, axis: str) -> Array:
    if axis in way.rings:
        return jnp.moveaxis(gather(jnp.moveaxis(x, dimension, 0), axis), 0, dimension)
    return lax.all_gather(x, axis, axis=dimension, tiled=True)


def scattered(x: Array, axis: str, dimension: int, *, apart: bool) -> Array:
    """A reduce-scatter along the outermost dimension.

    Along an inner one a TPU's compiler falls back to a full all-reduce where a shard is no whole
    number of lanes.  A product can write its result in any order of dimensions, and the compiler
    chooses; the rows of a table, and shards that would not fill lanes, are cut into pieces that
    stand ``apart``.
    """
    if not apart and x.shape[dimension] // lax.axis_size(axis) % LANES == 0:
        first = jnp.moveaxis(x, dimension, 0)
        part = lax.psum_scatter(first, axis, scatter_dimension=0, tiled=True)
        return jnp.moveaxis(part, 0, dimension)
    before, after = x.shape[:dimension], x.shape[dimension + 1 :]
    pieces = x.reshape(*before, lax.axis_size(axis), -1, *after)
    return lax.psum_scatter(jnp.moveaxis(pieces, dimension, 0), axis, scatter_dimension=0)
