"""From logical axes to shardings; what does not fit is an error, never replicated in silence."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.batch import Leaf, Params
from lm.errors import ShardingError, did_you_mean
from lm.parallel.mesh import AXES, parts
from lm.parallel.rules import Rules


def spec(axes: tuple[str, ...], rules: Rules, mesh: jax.sharding.Mesh) -> P:
    """The partition of an array with these logical axes; mesh axes of size 1 are left out.

    Raises:
        ShardingError: a name that is in no table, or a mesh axis used twice.
    """
    entries: list[tuple[str, ...]] = []
    for axis in axes:
        if axis not in rules:
            raise ShardingError(
                f"parallel.rules: no entry for the logical axis {axis!r}. "
                f"{did_you_mean(axis, rules)}Add it to the table, with () to leave it whole."
            )
        unknown = [name for name in rules[axis] if name not in AXES]
        if unknown:
            raise ShardingError(
                f"parallel.rules: {axis!r} is mapped to {unknown[0]!r}, which is no mesh axis. "
                f"{did_you_mean(unknown[0], AXES)}Choose from: {', '.join(AXES)}."
            )
        made_of = (part for name in rules[axis] for part in parts(mesh, name))
        entries.append(tuple(part for part in made_of if mesh.shape[part] > 1))
    used = [name for entry in entries for name in entry]
    twice = sorted({name for name in used if used.count(name) > 1})
    if twice:
        raise ShardingError(
            f"parallel.rules: an array with axes {axes} would be split twice over mesh axis "
            f"{twice[0]!r}. Map one of its axes to ()."
        )
    return P(*[entry[0] if len(entry) == 1 else entry or None for entry in entries])


def shardings(leaves: Params, shapes: Params, rules: Rules, mesh: jax.sharding.Mesh) -> Params:
    """A ``NamedSharding`` for every parameter.

    Raises:
        ShardingError: every dimension that cannot be split evenly, in one message.
    """
    problems: list[str] = []

    def one(path: Any, leaf: Leaf, shape: Any) -> NamedSharding:
        partition = spec(leaf.axes, rules, mesh)
        for axis, size, entry in zip(leaf.axes, shape.shape, partition, strict=True):
            names = names_of(entry)
            ways = math.prod(mesh.shape[name] for name in names)
            if size % ways:
                over = " x ".join(f"{name!r} ({mesh.shape[name]})" for name in names)
                problems.append(
                    f"{dotted(path)} has shape {tuple(shape.shape)}; its axis {axis!r} of size "
                    f"{size} cannot be split {ways} ways over mesh axis {over}. "
                    + _mend(axis, size, ways)
                )
        return NamedSharding(mesh, partition)

    result = jax.tree_util.tree_map_with_path(one, leaves, shapes)
    if problems:
        more = f" ({len(problems) - 1} more like it.)" if len(problems) > 1 else ""
        raise ShardingError(problems[0] + more)
    return result


def manual_part(partition: P, manual: frozenset[str]) -> P:
    """The same partition, automatic axes left out: what ``shard_map`` is told."""

    def kept(entry: Any) -> Any:
        names = tuple(n for n in names_of(entry) if n in manual)
        return names[0] if len(names) == 1 else names or None

    return P(*[kept(entry) for entry in partition])


def axes_of(partition: P) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(dimension, mesh axes that split it) for each dimension that is split."""
    for dimension, entry in enumerate(partition):
        if names := names_of(entry):
            yield dimension, names


def dotted(path: Any) -> str:
    """A tree path as ``stack_0.block_0.mixer.key.w``."""
    return ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def names_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes that one entry of a partition names."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _mend(axis: str, size: int, ways: int) -> str:
    if axis == "vocab":
        return f"Pad vocab_size to {-(-size // ways) * ways}, or make the mesh smaller."
    fits = [str(w) for w in range(1, ways) if size % w == 0]
    return (
        f"It splits {', '.join(fits)} ways: choose such a mesh, or map {axis!r} to () in "
        "parallel.rules."
    )


def count(shapes: Mapping[str, Any]) -> int:
    """How many numbers a tree of arrays or shapes holds."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
