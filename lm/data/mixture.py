"""A mixture of sources in which sample n is found by arithmetic."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from lm.data.order import key_of, permute
from lm.data.shards import Shards
from lm.data.source import Source
from lm.data.synthetic import Synthetic
from lm.errors import ConfigError

Kind = Shards | Synthetic
"""The sources on the menu."""

PRECISION = 2**30
"""Weights that no smaller whole numbers express exactly are rounded to this many parts."""


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A source, and its part of the samples."""

    source: Kind
    weight: float = 1.0
    """Relative to the sum of the weights; a source that ends before the run begins again."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(
                f"weight {self.weight}: must be above 0. Leave a source out that shall not be read."
            )


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sources read together in steady proportion, each shuffled anew in each of its epochs."""

    sources: tuple[Weighted, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources: a mixture needs at least one.")

    def build(self, length: int, digest: str | None = None) -> "Blend":
        """Open every source as windows of ``length`` predictions.

        Args:
            length: input positions T of a window.
            digest: the tokenizer that the ids must come from; None checks nothing.

        Raises:
            CorpusError: a source that cannot be opened or comes from another tokenizer.
        """
        if length < 1:
            raise ConfigError(f"length {length}: a window needs at least 1 position.")
        sources = tuple(part.source.build(length, digest) for part in self.sources)
        return Blend(sources, [part.weight for part in self.sources])


class Samples(NamedTuple):
    """Where samples come from: the source, which of its epochs, and the window in it."""

    source: Int[np.ndarray, " n"]
    epoch: Int[np.ndarray, " n"]
    window: Int[np.ndarray, " n"]


class Blend:
    """The sources of a mixture, open, as one endless order of samples."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        self.sources = tuple(sources)
        self._lengths = np.array([len(source) for source in sources])
        self._tree = _halve(whole_shares(weights))

    def locate(self, numbers: Int[np.ndarray, " n"], seed: int) -> Samples:
        """Where samples number ``numbers`` of the order ``seed`` come from."""
        source, ordinal = np.zeros_like(numbers), np.zeros_like(numbers)
        _descend(self._tree, numbers, np.arange(numbers.size), (source, ordinal))
        length = self._lengths[source]
        epoch, place = np.divmod(ordinal, length)
        window = permute(place, length, key_of(seed, source, epoch))
        return Samples(source, epoch, window)

    def read(self, samples: Samples) -> tuple[Int32[np.ndarray, "n W"], Int32[np.ndarray, "n W"]]:
        """The ids and segments of samples, W = T + 1."""
        parts = [
            (rows, *self.sources[i].read(samples.window[rows]))
            for i in range(len(self.sources))
            if (rows := np.flatnonzero(samples.source == i)).size
        ]
        if len(parts) == 1:
            return parts[0][1:]
        shape = (samples.source.size, parts[0][1].shape[1])
        ids, segments = np.empty(shape, np.int32), np.empty(shape, np.int32)
        for rows, part_ids, part_segments in parts:
            ids[rows], segments[rows] = part_ids, part_segments
        return ids, segments


def whole_shares(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers: exactly, where they are decimals of moderate size."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(part.denominator for part in exact))
    whole = [int(part * scale) for part in exact]
    common = math.gcd(*whole)
    whole = [part // common for part in whole]
    total = sum(whole)
    if total > PRECISION:
        whole = [max(1, round(Fraction(part, total) * PRECISION)) for part in whole]
    return whole


class _Fork(NamedTuple):
    """Two groups of sources, and the left one's share of both."""

    left: "_Fork | int"
    right: "_Fork | int"
    share: int
    total: int


def _halve(shares: Sequence[int]) -> _Fork | int:
    """A tree over the sources, the lightest joined first (Huffman): heavy ones are near the top.

    Every fork deals its samples out in whole numbers that follow its shares to half a sample.  An
    error shrinks on its way down as the shares do, so that after any number of samples each of up
    to three sources has its part within one sample, and each of any number within two.
    """
    heap: list[tuple[int, int, _Fork | int]] = [(s, i, i) for i, s in enumerate(shares)]
    heapq.heapify(heap)
    for order in range(len(shares), 2 * len(shares) - 1):
        a, b = heapq.heappop(heap), heapq.heappop(heap)
        fork = _Fork(a[2], b[2], a[0], a[0] + b[0])
        heapq.heappush(heap, (fork.total, order, fork))
    return heap[0][2]


def _descend(
    tree: _Fork | int, numbers: np.ndarray, rows: np.ndarray, out: tuple[np.ndarray, np.ndarray]
) -> None:
    """Write for each row its source, and how many samples that source gave before."""
    if isinstance(tree, int):
        source, ordinal = out
        source[rows], ordinal[rows] = tree, numbers
        return
    given = _dealt(numbers, tree.share, tree.total)
    left = _dealt(numbers + 1, tree.share, tree.total) > given
    _descend(tree.left, given[left], rows[left], out)
    _descend(tree.right, (numbers - given)[~left], rows[~left], out)


def _dealt(numbers: np.ndarray, share: int, total: int) -> np.ndarray:
    """``numbers * share / total`` to the nearest whole number, without overflow."""
    rounds, rest = np.divmod(numbers, total)
    return rounds * share + (2 * rest * share + total) // (2 * total)
