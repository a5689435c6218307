"""A small tree of parameters with one leaf of every kind, one of them stacked."""

import numpy as np
import pytest

from lm.batch import Leaf

SHAPES = {
    "table": ((7, 4), Leaf(("vocab", "table"), 1, 4, False, "table")),
    "places": ((5, 4), Leaf(("position", "table"), 1, 4, False, "position")),
    "query": ((3, 4, 2, 2), Leaf(("layers", "embed", "heads", "head"), 4, 4, True, "matrix")),
    "scale": ((3, 4), Leaf(("layers", "norm"), 4, 4, True, "norm")),
    "head": {
        "w": ((4, 7), Leaf(("embed", "vocab"), 4, 7, False, "matrix")),
        "bias": ((7,), Leaf(("vocab",), 4, 7, False, "bias")),
    },
}


def build(make, tree=SHAPES):
    """The tree with ``make(shape, leaf)`` at each place."""
    return {k: build(make, v) if isinstance(v, dict) else make(*v) for k, v in tree.items()}


@pytest.fixture
def leaves():
    return build(lambda shape, leaf: leaf)


@pytest.fixture
def arrays():
    """Makes float32 trees of the parameters' shapes from a seed and a scale."""

    def make(seed: int, scale: float = 1.0):
        rng = np.random.default_rng(seed)
        return build(lambda shape, leaf: scale * rng.normal(size=shape).astype(np.float32))

    return make
