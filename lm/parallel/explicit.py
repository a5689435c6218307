"""The explicit region: every axis that splits tokens is handled by hand, in this room.

Weights are stored split over the token axes.  Inside the region (a ``shard_map`` that is manual
over those axes; ``tensor`` stays automatic) a weight is gathered, one mesh axis after another,
right before it is used; the transpose of each gather is a reduce-scatter over that one axis, so
gradients leave the region split as the weights are stored.  On one device all of it melts away.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lm.batch import Leaf, Params
from lm.parallel.mesh import TOKEN_AXES
from lm.parallel.rules import Rules
from lm.parallel.shardings import axes_of, manual_part, spec


class Explicit(NamedTuple):
    """A mesh seen from inside the region."""

    mesh: jax.sharding.Mesh
    rules: Rules
    compute_dtype: Any
    """Dtype in which weights travel."""
    reduce_dtype: Any
    """Dtype in which their gradients travel."""

    @property
    def manual(self) -> tuple[str, ...]:
        """The token axes that really split."""
        return tuple(axis for axis in TOKEN_AXES if self.mesh.shape[axis] > 1)

    def spec(self, axes: tuple[str, ...]) -> P:
        """How an array with these logical axes enters and leaves the region."""
        return manual_part(spec(axes, self.rules, self.mesh), frozenset(self.manual))

    def specs(self, leaves: Params) -> Params:
        """The same for a tree of leaves."""
        return jax.tree.map(lambda leaf: self.spec(leaf.axes), leaves)

    def gather(self, params: Params, leaves: Params) -> Params:
        """Make weights whole over the token axes; matrices and tables in the compute dtype."""

        def one(shard: Array, leaf: Leaf) -> Array:
            stages = tuple(
                (dimension, axis)
                for dimension, axes in axes_of(self.spec(leaf.axes))
                for axis in reversed(axes)
            )
            if not stages:
                return shard
            return _gathered(shard, stages, self.compute_dtype, self.reduce_dtype)

        return jax.tree.map(one, params, leaves)

    def constrain(self, x: Array, axes: tuple[str, ...]) -> Array:
        """Lay an activation out over the automatic axes as the rule table says."""
        names = frozenset(a for a in self.mesh.axis_names if a not in TOKEN_AXES)
        parts = manual_part(spec(axes, self.rules, self.mesh), names)
        if all(entry is None for entry in parts):
            return x
        if self.manual:
            return lax.with_sharding_constraint(x, parts)
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, parts))

    def region(self, function: Callable[..., Any], inward: Any, outward: Any) -> Callable[..., Any]:
        """Run ``function`` once per shard of the token axes; the specs name those axes alone."""
        if not self.manual:
            return function
        return jax.shard_map(
            function,
            mesh=self.mesh,
            axis_names=set(self.manual),
            in_specs=inward,
            out_specs=outward,
            # A Pallas kernel's outputs carry no varying-axes type, so the check must be off.
            check_vma=False,
        )

    def sum_tokens(self, x: Any) -> Any:
        """Sum a tree over every token axis (inside the region, outside what is differentiated)."""
        return lax.psum(x, self.manual) if self.manual else x

    def sum_gradients(self, gradients: Params, leaves: Params) -> Params:
        """Sum each gradient once over the token axes that its reduce-scatters left out."""

        def one(gradient: Array, leaf: Leaf) -> Array:
            done = {axis for _, axes in axes_of(self.spec(leaf.axes)) for axis in axes}
            missing = tuple(axis for axis in self.manual if axis not in done)
            return lax.psum(gradient, missing) if missing else gradient

        return jax.tree.map(one, gradients, leaves)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(shard: Array, stages: Any, compute_dtype: Any, reduce_dtype: Any) -> Array:
    whole = shard.astype(compute_dtype)
    for dimension, axis in stages:
        whole = lax.all_gather(whole, axis, axis=dimension, tiled=True)
    return whole


def _gathered_forward(
    shard: Array, stages: Any, compute_dtype: Any, reduce_dtype: Any
) -> tuple[Array, Array]:
    empty = jnp.zeros((0,), shard.dtype)
    return _gathered(shard, stages, compute_dtype, reduce_dtype), empty


def _gathered_backward(
    stages: Any, compute_dtype: Any, reduce_dtype: Any, like: Array, gradient: Array
) -> tuple[Array]:
    part = gradient.astype(reduce_dtype)
    for dimension, axis in reversed(stages):
        part = lax.psum_scatter(part, axis, scatter_dimension=dimension, tiled=True)
    return (part.astype(like.dtype),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
