"""Token tables: into the model, and out of it."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.batch import Leaf
from lm.layers.linear import head_product
from lm.layers.parameter import declare


class TokenEmbedding(nn.Module):
    """A vector for each id.

    Its vocabulary may be sharded, never its width: XLA would replicate the lookup.
    """

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, ids_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The vector of each id."""
        leaf = Leaf(("vocab", "table"), 1, self.width, stacked=False, kind="table")
        table = declare(self, "table", (self.vocab_size, self.width), leaf)
        return jnp.take(table, ids_BT, axis=0)


class Unembedding(nn.Module):
    """An output head of its own, apart from the token table."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """The logits of each hidden state."""
        shape = (self.width, self.vocab_size)
        leaf = Leaf(("table", "vocab"), self.width, self.vocab_size, stacked=False, kind="matrix")
        return head_product(hidden, declare(self, "w", shape, leaf).T.astype(hidden.dtype))
