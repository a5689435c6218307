"""The contract of a model: a record of pure functions over nested dicts of parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from lm.batch import Batch, LogitsFn, Output, Params

Caches = Any
"""Whatever a model remembers of its sequences; opaque to its callers."""


class Decoding(NamedTuple):
    """Generation over slots: a slot holds one sequence, its positions counted from 0."""

    empty: Callable[[int, int], Caches]
    """(slots, positions) -> blank caches."""
    prefill: Callable[..., tuple[Caches, Float[Array, "B D"]]]
    """(params, caches, slots [B], ids [B, T], lengths [B]) -> caches, hidden of each last token.
    Rows are padded on the right; what lies beyond ``lengths`` is never seen."""
    extend: Callable[..., tuple[Caches, Float[Array, "S D"]]]
    """(params, caches, ids [S], lengths [S]) -> caches, hidden of the new token of every slot,
    which stands at position ``lengths``."""
    evict: Callable[[Caches, Int[Array, " B"]], Caches]
    """(caches, slots) -> caches with those slots blank."""


class Model(NamedTuple):
    """What is computed, whatever the mesh."""

    init: Callable[[Array], Params]
    """A key -> parameters, float32; ``jax.eval_shape`` of it costs nothing."""
    apply: Callable[[Params, Batch, Array | None], Output]
    """(params, batch, key or None) -> hidden states; without a key nothing is dropped."""
    logits: Callable[[Params], LogitsFn]
    """params -> a function of hidden states.  Curried, so that a sharded output table is gathered
    once however many pieces the loss cuts the tokens into."""
    leaves: Params
    """A tree like the parameters', a ``Leaf`` for each."""
    decoding: Decoding | None
    """None for models that do not generate."""
