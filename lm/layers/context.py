"""What every block of a forward pass shares: where the tokens stand, rotations, randomness."""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.layers.position import Rope
from lm.ops.attention.pattern import Where
from lm.ops.rope import Angles


class Context(NamedTuple):
    """Computed once a forward pass; blocks only read it."""

    where: Where
    """Segment and position of the tokens that enter."""
    there: Where
    """The same of the tokens that may be seen: of whole rows, where these are shards of them."""
    rows: Int[Array, " B"]
    """Each row's number in the global batch."""
    angles: Mapping[Rope, Angles]
    """The rotations of every Rope that some block uses."""
    key: Array | None = None
    """Key of this step (and layer); None where nothing is random."""

    def at_layer(self, layer: Array | int) -> "Context":
        """The same with the layer's own key."""
        return self if self.key is None else self._replace(key=jax.random.fold_in(self.key, layer))


def dropout(
    x_BTD: Float[Array, "B T D"], rate: float, context: Context, site: str
) -> Float[Array, "B T D"]:
    """Dropout (Srivastava 2014) whose bits depend on step, layer, site, row and position alone.

    Row numbers are those of the global batch, and segment with position names a token within its
    row, so the same features fall out on every mesh and for every number of microbatches.
    """
    if rate == 0.0 or context.key is None:
        return x_BTD
    key = jax.random.fold_in(context.key, zlib.crc32(site.encode()))

    def bits(row: Array, segment: Array, position: Array) -> Array:
        token = jax.random.fold_in(jax.random.fold_in(key, row), segment)
        return jax.random.bits(jax.random.fold_in(token, position), (x_BTD.shape[-1],), jnp.uint32)

    over_positions = jax.vmap(bits, in_axes=(None, 0, 0))
    drawn = jax.vmap(over_positions)(context.rows, *context.where)
    kept = drawn >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))
    return jnp.where(kept, x_BTD / (1.0 - rate), 0.0).astype(x_BTD.dtype)
