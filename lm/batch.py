"""The shapes on which data, objectives, models and training agree.

Dimension letters as everywhere: B rows, T positions, D model width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Shaped

Params = Mapping[str, Any]
"""Nested plain dicts whose leaves are arrays (or shapes, shardings, ``Leaf``)."""


class Tokens(NamedTuple):
    """Rows of token ids, packed: several documents may share a row.

    A document is known within its row by its segment (1, 2, ...; 0 is padding), and positions
    count from 0 in each segment.
    """

    ids: Shaped[Any, "B T"]
    segments: Shaped[Any, "B T"]
    positions: Shaped[Any, "B T"]


class Batch(NamedTuple):
    """One global batch, or a part of its rows; int32 but for the float32 weights.

    ``weights`` is 0 where nothing is scored.  ``rows`` is each row's number in the global batch,
    from which randomness inside the model is drawn, so that it is the same on every mesh.
    """

    inputs: Tokens
    targets: Shaped[Any, "B T"]
    weights: Shaped[Any, "B T"]
    rows: Shaped[Any, " B"]
    source: Tokens | None = None


class Example(NamedTuple):
    """What an objective makes of one row on the host; numpy, no batch dimension."""

    ids: Int[np.ndarray, " T"]
    segments: Int[np.ndarray, " T"]
    targets: Int[np.ndarray, " T"]
    weights: Float[np.ndarray, " T"]
    source: tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]] | None = None


class Output(NamedTuple):
    """What a model makes of a batch: hidden states, and statistics as sums over tokens."""

    hidden: Float[Array, "B T D"]
    statistics: Mapping[str, Array]


LogitsFn = Callable[[Float[Array, "*tokens D"]], Float[Array, "*tokens V"]]
"""Hidden states to logits, of any leading shape; apart, so that a loss may chunk the tokens."""


class Pieced(NamedTuple):
    """A ``LogitsFn`` that can also make the logits of a part of the vocabulary at a time."""

    whole: LogitsFn
    weights: Params
    """As they are stored, each with a leading dimension of pieces."""
    part: Callable[[Params, Float[Array, "*tokens D"]], Float[Array, "*tokens v"]]
    """(weights of one piece, hidden states) -> its logits."""
    ids: Callable[[Int[Array, ""]], Int[Array, " v"]]
    """Which ids the logits of a piece stand for."""

    def __call__(self, hidden: Float[Array, "*tokens D"]) -> Float[Array, "*tokens V"]:
        """All logits."""
        return self.whole(hidden)


class Loss(NamedTuple):
    """Sums and counts, never means: they add across devices and microbatches."""

    total: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: Mapping[str, Array]


@dataclass(frozen=True)
class Leaf:
    """What is known of one parameter besides its values; sharding, decay masks and muP read it.

    ``axes`` are the logical axis names, one a dimension; ``fan_in`` and ``fan_out`` leave the
    ``layers`` dimension out; ``stacked`` says whether there is one.
    """

    axes: tuple[str, ...]
    fan_in: int
    fan_out: int
    stacked: bool
    kind: str
    """``matrix``, ``table``, ``position``, ``norm`` or ``bias``."""
