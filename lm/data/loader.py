"""Global batches as a function of their number, and a stream of them that Grain delivers.

Batch k holds samples k * sequences and on; a sample's source, epoch and window, and any random
choice about it, follow from its number and the seed.  So the global batch is the same for any
number of processes, resuming costs nothing, and the one integer ``position`` (sequences consumed)
is all there is to save.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, Int32

from lm.batch import Batch, Example, Tokens
from lm.data.mixture import Blend, Samples
from lm.data.order import key_of
from lm.data.packing import positions_of
from lm.data.source import Piece
from lm.errors import ConfigError


@runtime_checkable
class Prepares(Protocol):
    """The host half of an objective.

    One whose choices need no randomness may also have ``prepare_rows(ids, segments)``, which
    takes rows ([n, T+1] both) and returns an ``Example`` of rows: many times as fast.
    """

    def prepare(
        self,
        ids: Int32[np.ndarray, " W"],
        segments: Int32[np.ndarray, " W"],
        rng: np.random.Generator,
    ) -> Example:
        """Make an example of one window of T + 1 tokens."""
        ...


class Origin(NamedTuple):
    """Where a row of a global batch comes from."""

    source: str
    """The source's name."""
    epoch: int
    window: int
    pieces: tuple[Piece, ...]
    """The row's segments 1, 2, ... as parts of documents."""
    names: tuple[str, ...]
    """The documents' own names, one a piece."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Every global batch of a run, and which rows of them this process reads."""

    blend: Blend
    objective: Prepares
    sequences: int
    """Rows B of a global batch."""
    seed: int
    rows: slice | Sequence[int] | np.ndarray | None = None
    """The rows of each global batch that this process reads; None: all."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Ranges (start, stop) of sample numbers that are left out; later samples move up."""

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise ConfigError(f"sequences {self.sequences}: a batch needs at least 1.")
        for start, stop in self.skipped:
            if not 0 <= start < stop:
                raise ConfigError(
                    f"skipped ({start}, {stop}): a range goes from a sample number up to a "
                    "greater one."
                )

    def numbers(self, position: int) -> Int[np.ndarray, " B"]:
        """The sample numbers of the global batch that begins after ``position`` sequences."""
        numbers = position + np.arange(self.sequences)
        for start, stop in _merge(self.skipped):
            numbers[numbers >= start] += stop - start
        return numbers

    def batch(self, position: int) -> Batch:
        """This process's rows of the global batch that begins after ``position`` sequences."""
        samples = self.blend.locate(self.numbers(position)[self._rows], self.seed)
        ids, segments = self.blend.read(samples)
        example = self._prepare(ids, segments, samples)
        return Batch(
            inputs=_tokens(example.ids, example.segments),
            targets=np.ascontiguousarray(example.targets, np.int32),
            weights=np.ascontiguousarray(example.weights, np.float32),
            rows=self._rows.astype(np.int32),
            source=None if example.source is None else _tokens(*example.source),
        )

    def origins(self, position: int) -> list[Origin]:
        """Where each row of a whole global batch comes from; the inverse of the order."""
        samples = self.blend.locate(self.numbers(position), self.seed)
        places = list(zip(*(part.tolist() for part in samples), strict=True))
        pieces = [self.blend.sources[s].documents(window) for s, _, window in places]
        names: dict[tuple[int, int], str] = {}
        for s, source in enumerate(self.blend.sources):
            used = sorted(
                {
                    p.document
                    for place, row in zip(places, pieces, strict=True)
                    if place[0] == s
                    for p in row
                }
            )
            names |= {(s, d): name for d, name in zip(used, source.names(used), strict=True)}
        return [
            Origin(
                self.blend.sources[s].name,
                epoch,
                window,
                tuple(row),
                tuple(names[s, p.document] for p in row),
            )
            for (s, epoch, window), row in zip(places, pieces, strict=True)
        ]

    def stream(self, position: int = 0, *, threads: int = 2, prefetch: int = 4) -> "Stream":
        """Deliver the batches from ``position`` on, made ahead of their use.

        Args:
            position: sequences consumed before.
            threads: how many batches are made at a time; 0 makes each when it is asked for.
            prefetch: how many batches wait at most.
        """
        return Stream(self, position, threads=threads, prefetch=prefetch)

    @cached_property
    def _rows(self) -> np.ndarray:
        every = np.arange(self.sequences)
        return every if self.rows is None else every[self.rows]

    def _prepare(self, ids: np.ndarray, segments: np.ndarray, samples: Samples) -> Example:
        whole = getattr(self.objective, "prepare_rows", None)
        if whole is not None:
            return whole(ids, segments)
        keys = key_of(self.seed, samples.source, samples.epoch)
        words = np.stack([keys, samples.window.astype(np.uint64)], axis=1)  # 128 bits for each row
        return _stack(
            [
                self.objective.prepare(i, s, np.random.Generator(np.random.Philox(key=key)))
                for i, s, key in zip(ids, segments, words, strict=True)
            ]
        )


class Stream(Iterator[Batch]):
    """Batches in order, made by Grain's threads; close it, or use it in a ``with`` statement.

    An error while a batch is made is raised when that batch is asked for, and ends the stream.
    """

    position: int
    """Sequences consumed: what a checkpoint keeps."""

    def __init__(self, loader: Loader, position: int, *, threads: int, prefetch: int):
        self.loader = loader
        self.position = position
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        dataset = grain.MapDataset.source(_Ahead(loader, position)).to_iter_dataset(options)
        self._batches = iter(dataset)
        self._batches.start_prefetch()

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except BaseException:
            self.close()  # Grain has dropped the batch; the next one would be out of place
            raise
        self.position += self.loader.sequences
        return batch

    def close(self) -> None:
        """Stop the threads; what they made ahead is dropped.  Closing twice is harmless."""
        self._batches.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Ahead:
    """The batches after a position, as the random access that Grain wants."""

    def __init__(self, loader: Loader, position: int):
        self._loader = loader
        self._position = position

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        return self._loader.batch(self._position + index * self._loader.sequences)


def _merge(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in ascending ranges that do not overlap."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _tokens(ids: np.ndarray, segments: np.ndarray) -> Tokens:
    """Contiguous, so that a device can take them as they are."""
    segments = np.ascontiguousarray(segments, np.int32)
    return Tokens(np.ascontiguousarray(ids, np.int32), segments, positions_of(segments))


def _stack(examples: Sequence[Example]) -> Example:
    ids, segments, targets, weights, sources = zip(*examples, strict=True)
    pairs = [pair for pair in sources if pair is not None]
    return Example(
        np.stack(ids),
        np.stack(segments),
        np.stack(targets),
        np.stack(weights),
        (np.stack([i for i, _ in pairs]), np.stack([s for _, s in pairs])) if pairs else None,
    )
