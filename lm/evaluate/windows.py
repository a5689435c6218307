"""Documents -> rows in which every token but the first of each document is predicted once.

A document is cut into consecutive windows of at most T predictions; neighbours share one token,
the last target of one and the first input of the next.  A window that fills no row shares one
with others, each a segment of its own.  Rows depend on the documents and on T alone, not on the
size of the batches or the number of devices.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lm.batch import Batch, Tokens
from lm.data.packing import count_windows

OPEN = 16
"""Rows that wait for more windows; the fullest is given up when another is needed."""

Document = np.ndarray
"""BOS, text, EOS: ids of any integer type."""


class Row(NamedTuple):
    """One row of T tokens, int32; segment 0 is padding, whose targets are not scored."""

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


def rows_of(documents: Iterable[Document], length: int) -> Iterator[Row]:
    """The documents as rows; short windows go where they leave the least room."""
    waiting: list[_Open] = []
    for window in _windows(documents, length):
        size = window.size - 1
        fitting = [row for row in waiting if length - row.used >= size]
        if fitting:
            row = max(fitting, key=lambda row: row.used)
        else:
            row = _Open(length)
            waiting.append(row)
        row.add(window)
        if row.used == length:
            waiting.remove(row)
            yield row.row
        elif len(waiting) > OPEN:
            fullest = max(waiting, key=lambda row: row.used)
            waiting.remove(fullest)
            yield fullest.row
    yield from (row.row for row in waiting)


def batches_of(rows: Iterable[Row], count: int, length: int) -> Iterator[Batch]:
    """Batches of ``count`` rows of T tokens; the last is filled with rows of weight 0."""
    batch = _blank(count, length)
    filled = 0
    for row in rows:
        for part, given in zip((*batch.inputs, batch.targets), row, strict=True):
            part[filled] = given
        batch.weights[filled] = row.segments != 0
        filled += 1
        if filled == count:
            yield batch
            batch, filled = _blank(count, length), 0
    if filled:
        yield batch


class _Open:
    """A row that has room."""

    def __init__(self, length: int) -> None:
        self.row = Row(*(np.zeros(length, np.int32) for _ in Row._fields))
        self.used = self.segments = 0

    def add(self, window: np.ndarray) -> None:
        """Put a window behind what is there."""
        size = window.size - 1
        place = slice(self.used, self.used + size)
        self.segments += 1
        self.row.ids[place], self.row.targets[place] = window[:-1], window[1:]
        self.row.segments[place] = self.segments
        self.row.positions[place] = np.arange(size)
        self.used += size


def _windows(documents: Iterable[Document], length: int) -> Iterator[np.ndarray]:
    for document in documents:
        for number in range(count_windows(document.size, length)):
            yield document[number * length : (number + 1) * length + 1]


def _blank(count: int, length: int) -> Batch:
    ids, segments, positions, targets = (np.zeros((count, length), np.int32) for _ in range(4))
    weights = np.zeros((count, length), np.float32)
    return Batch(
        Tokens(ids, segments, positions), targets, weights, np.arange(count, dtype=np.int32)
    )
