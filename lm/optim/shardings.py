"""Shardings of the optimizer's state: each part as the parameter it belongs to."""

import math
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from lm.batch import Params
from lm.errors import ShardingError

LARGE = 2**20
"""Elements beyond which a leaf of the state must not be replicated without being asked."""

_UNMATCHED = object()


def state_shardings(
    optimizer: optax.GradientTransformation,
    abstract_params: Params,
    param_shardings: Params,
    replicated: Sharding,
) -> Any:
    """A tree like the optimizer's state with a sharding for each of its arrays.

    A moment is sharded as its parameter.  A factored one, which lacks some of its parameter's
    dimensions, keeps the mesh axes of those it has.  Counters and other small things are
    replicated.

    Args:
        optimizer: the transformation whose state it is.
        abstract_params: the parameters' shapes and dtypes.
        param_shardings: a tree like the parameters, of shardings.
        replicated: the sharding of what belongs to no parameter.

    Raises:
        ShardingError: a large array of the state fits no parameter, so that replicating it
            would quietly cost its memory on every device.
    """
    state = jax.eval_shape(optimizer.init, abstract_params)

    def of_parameter(leaf: Any, param: Any, sharding: Sharding) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        if leaf.shape == param.shape:
            return sharding
        kept = _kept_dimensions(leaf.shape, param.shape)
        if kept is not None and isinstance(sharding, NamedSharding):
            spec = [*sharding.spec, *[None] * (len(param.shape) - len(sharding.spec))]
            return NamedSharding(sharding.mesh, PartitionSpec(*[spec[i] for i in kept]))
        return of_no_parameter(leaf)

    def of_no_parameter(leaf: Any) -> Any:
        return replicated if math.prod(leaf.shape) <= LARGE else _UNMATCHED

    shardings = optax.tree_utils.tree_map_params(
        optimizer,
        of_parameter,
        state,
        abstract_params,
        param_shardings,
        transform_non_params=of_no_parameter,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    _refuse_unmatched(state, shardings)
    return shardings


def _kept_dimensions(shape: tuple[int, ...], full: tuple[int, ...]) -> list[int] | None:
    """Which dimensions of ``full`` remain in ``shape``, in order; None where it is no part."""
    kept: list[int] = []
    for i, size in enumerate(full):
        if len(kept) < len(shape) and shape[len(kept)] == size:
            kept.append(i)
    return kept if kept and len(kept) == len(shape) else None


def _refuse_unmatched(state: Any, shardings: Any) -> None:
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    lost = [
        f"{jax.tree_util.keystr(path, simple=True, separator='.')} of shape {leaf.shape}"
        for (path, leaf), sharding in zip(paths, jax.tree.leaves(shardings), strict=True)
        if sharding is _UNMATCHED
    ]
    if lost:
        raise ShardingError(
            f"optimizer state: {', '.join(lost)} fits no parameter, and copying so large an array "
            "to every device would waste their memory. Keep the state in trees of the "
            "parameters' shapes, or use another optimizer."
        )
