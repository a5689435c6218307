"""Which parameters a rule applies to, told by their kind and never by their name."""

from typing import Any

import jax

from lm.batch import Leaf
from lm.optim.optimizer import Leaves


def decay_mask(leaves: Leaves, *, tables: bool = False) -> Any:
    """A tree of booleans: True where weight decay applies.

    Matrices decay; norm scales, biases and learned positions never do, for nothing else holds
    their size; token tables only if asked, since rare tokens would shrink between the few
    gradients they get.
    """
    kinds = {"matrix", "table"} if tables else {"matrix"}
    return kind_mask(leaves, kinds)


def kind_mask(leaves: Leaves, kinds: set[str]) -> Any:
    """A tree of booleans: True where the leaf's kind is one of ``kinds``."""

    def chosen(leaf: Leaf) -> bool:
        return leaf.kind in kinds

    return jax.tree.map(chosen, leaves)
