"""The explicit region: every axis that splits tokens is handled by hand, in this room.

Weights are stored split over the token axes.  Inside the region (a ``shard_map`` that is manual
over those axes; ``tensor`` stays automatic) a weight is gathered, one mesh axis after another,
right before it is used; the transpose of each gather is a reduce-scatter over that one axis, so
gradients leave the region split as the weights are stored.  On one device all of it melts away.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lm.batch import Leaf, Params
from lm.parallel.mesh import TOKEN_AXES, parts, size
from lm.parallel.rules import Rules
from lm.parallel.shardings import axes_of, manual_part, names_of, spec
from lm.parallel.travel import Travel, gathered, scattered

WORTH_A_RING = 0.1
"""A stage that moves at least this share of a weight's bytes goes in a ring, the rest at once:
a ring is as many instructions to compile as it has devices."""


class Explicit(NamedTuple):
    """A mesh seen from inside the region."""

    mesh: jax.sharding.Mesh
    rules: Rules
    compute_dtype: Any
    """Dtype in which weights travel."""
    reduce_dtype: Any
    """Dtype in which their gradients travel."""
    rings: bool = False
    """Whether they travel from neighbour to neighbour; see ``lm.parallel.ring``."""

    @property
    def manual(self) -> tuple[str, ...]:
        """The parts of token axes that really split."""
        return tuple(part for part in self._token_parts if self.mesh.shape[part] > 1)

    @property
    def _token_parts(self) -> tuple[str, ...]:
        return tuple(part for axis in TOKEN_AXES for part in parts(self.mesh, axis))

    @property
    def _context_parts(self) -> tuple[str, ...]:
        return tuple(p for p in parts(self.mesh, "context") if self.mesh.shape[p] > 1)

    def spec(self, axes: tuple[str, ...]) -> P:
        """How an array with these logical axes enters and leaves the region."""
        return manual_part(spec(axes, self.rules, self.mesh), frozenset(self.manual))

    def specs(self, leaves: Params) -> Params:
        """The same for a tree of leaves."""
        return jax.tree.map(lambda leaf: self.spec(leaf.axes), leaves)

    def gather(self, params: Params, leaves: Params) -> Params:
        """Make weights whole over the token axes; matrices and tables in the compute dtype."""
        shards, structure = jax.tree.flatten(params)
        ways = [self._travel(leaf) for leaf in structure.flatten_up_to(leaves)]
        split = [n for n, way in enumerate(ways) if way.stages]
        made: Sequence[Array] = gathered(
            tuple(shards[n] for n in split), tuple(ways[n] for n in split)
        )
        for n, whole in zip(split, made, strict=True):
            shards[n] = whole
        return jax.tree.unflatten(structure, shards)

    def _travel(self, leaf: Leaf) -> Travel:
        stages = tuple(
            (dimension, part)
            for dimension, made_of in axes_of(self.spec(leaf.axes))
            for part in reversed(made_of)
        )
        table, alone = leaf.kind == "table", size(self.mesh, "tensor") == 1
        dtypes = (self.compute_dtype, self.reduce_dtype)
        return Travel(stages, table, alone and not table, *dtypes, self._rings(stages))

    def _rings(self, stages: Sequence[tuple[int, str]]) -> frozenset[str]:
        """The mesh axes along which a weight goes from neighbour to neighbour."""
        found, left = set[str](), 1.0
        for _, axis in reversed(stages):  # the last one moves the most
            ways = self.mesh.shape[axis]
            if left * (1 - 1 / ways) >= WORTH_A_RING:
                found.add(axis)
            left /= ways
        return frozenset(found if self.rings else ())

    def whole_rows(self, x: Array) -> Array:
        """Gather [B, t, ...] along the positions, over the context axis; shards lie in order."""
        for part in reversed(self._context_parts):
            x = _rows(x, part)
        return x

    def row_index(self) -> Array:
        """Which share of its rows this device has, counted along the context axis."""
        return lax.axis_index(self._context_parts)

    def constrain(self, x: Array, axes: tuple[str, ...]) -> Array:
        """Lay an activation out over the automatic axes as the rule table says.

        What does not divide (the single position of a decoding step) is left as it is.
        """
        names = frozenset(self.mesh.axis_names) - frozenset(self._token_parts)
        partition = manual_part(spec(axes, self.rules, self.mesh), names)
        fits = [
            n % math.prod(self.mesh.shape[name] for name in names_of(entry)) == 0
            for n, entry in zip(x.shape, partition, strict=True)
        ]
        partition = P(*[e if fit else None for e, fit in zip(partition, fits, strict=True)])
        if all(entry is None for entry in partition):
            return x
        if self.manual:
            return lax.with_sharding_constraint(x, partition)
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, partition))

    def region(self, function: Callable[..., Any], inward: Any, outward: Any) -> Callable[..., Any]:
        """Run ``function`` once per shard of the token axes; the specs name those axes alone."""
        if not self.manual:
            return function
        return jax.shard_map(
            function,
            mesh=self.mesh,
            axis_names=set(self._token_parts),
            in_specs=inward,
            out_specs=outward,
            # A Pallas kernel's outputs carry no varying-axes type, so the check must be off.
            check_vma=False,
        )

    def local(
        self,
        function: Callable[..., Any],
        inward: Any,
        outward: Any,
    ) -> Callable[..., Any]:
        """Run ``function`` once per device: for kernels, which no compiler can split.

        Args:
            function: of arrays; called within the region, where there is one.
            inward: logical axes of each array of each argument.
            outward: the same of the result.
        """
        if self.mesh.size == 1:
            return function
        names = frozenset(self.mesh.axis_names) - frozenset(self._token_parts)
        if not self.manual:
            names = frozenset(self.mesh.axis_names)

        def of(tree: Any) -> Any:
            return jax.tree.map(
                lambda axes: manual_part(spec(axes, self.rules, self.mesh), names),
                tree,
                is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(s, str) for s in x),
            )

        return jax.shard_map(
            function,
            mesh=None if self.manual else self.mesh,
            axis_names=set(names),
            in_specs=of(inward),
            out_specs=of(outward),
            check_vma=False,
        )

    def sum_tokens(self, x: Any) -> Any:
        """Sum a tree over every token axis (inside the region, outside what is differentiated)."""
        return lax.psum(x, self.manual) if self.manual else x

    def sum_gradients(self, gradients: Params, leaves: Params) -> Params:
        """Sum each gradient once over the token axes that its reduce-scatters left out."""

        def one(gradient: Array, leaf: Leaf) -> Array:
            done = {part for _, made_of in axes_of(self.spec(leaf.axes)) for part in made_of}
            missing = tuple(part for part in self.manual if part not in done)
            return lax.psum(gradient, missing) if missing else gradient

        return jax.tree.map(one, gradients, leaves)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _rows(x: Array, axis: str) -> Array:
    """Gather [B, t, ...] along the positions; the gradient is scattered as a table's is."""
    return lax.all_gather(x, axis, axis=1, tiled=True)


_rows.defvjp(
    lambda x, axis: (_rows(x, axis), None),
    lambda axis, _, gradient: (scattered(gradient, axis, 1, apart=True),),
)
