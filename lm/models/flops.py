"""How many floating-point operations a token costs, from the model's own formula.

A product of an activation with a weight costs 2 operations a weight forward and 4 backward.
Attention adds its two products of queries with keys and weights with values.  Counted ``full``,
every query meets all T keys, as most published figures have it; counted ``causal``, only those
that it may see.  Norms, softmax and the table lookup are left out, as everywhere.
"""

from typing import NamedTuple

import jax
import numpy as np

from lm.batch import Leaf, Params
from lm.models.decoder import Decoder, Tied


class Flops(NamedTuple):
    """Operations of forward and backward pass for one token."""

    causal: float
    full: float


def training_flops_per_token(
    decoder: Decoder, leaves: Params, shapes: Params, length: int
) -> Flops:
    """What one token of a row of ``length`` costs in training, without recomputation."""
    products = weights_in_products(leaves, shapes)
    if isinstance(decoder.unembedding, Tied):
        products += decoder.vocab_size * decoder.width
    seen_full = seen_causal = 0.0
    for block in decoder.blocks:
        m = block.mixer
        heads = m.num_heads * m.head_width
        window = min(m.window or length, length)
        # A causal query at place t sees min(t + 1, window) keys.
        mean = (window * (window + 1) / 2 + (length - window) * window) / length
        seen_full += heads * length
        seen_causal += heads * mean
    # Two products of 2 operations a key and feature, and twice that backward.
    return Flops(6.0 * products + 12.0 * seen_causal, 6.0 * products + 12.0 * seen_full)


def weights_in_products(leaves: Params, shapes: Params) -> int:
    """Weights that every token is multiplied with: all matrices."""

    def one(leaf: Leaf, shape: jax.ShapeDtypeStruct) -> int:
        return int(np.prod(shape.shape)) if leaf.kind == "matrix" else 0

    return sum(jax.tree.leaves(jax.tree.map(one, leaves, shapes)))
