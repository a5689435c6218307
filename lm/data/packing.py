"""Packing: documents end to end, cut into windows; and the way back.

Windows of a stream begin every T tokens and hold T + 1, so that neighbours share one token: the
last of a window is its last target, and the first input of the next.  A row knows its documents
by segment (1, 2, ...; 0 is padding); positions count from 0 in each segment.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32, Integer


def count_windows(tokens: int, length: int) -> int:
    """How many windows of ``length`` predictions a stream of so many tokens gives.

    The last one may be padded; a stream of less than two tokens predicts nothing.
    """
    return max(0, -(-(tokens - 1) // length))


def boundaries(
    starts: Int[np.ndarray, " documents"], begin: Int[np.ndarray, " n"], end: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " total"]]:
    """Where documents begin inside of windows.

    Args:
        starts: where each document begins in the stream, ascending.
        begin: where each window begins in the stream.
        end: where each window ends, exclusive.

    Returns:
        How many documents begin strictly inside of each window, and their columns, one window
        after the other.
    """
    first = np.searchsorted(starts, begin, side="right")
    counts = np.searchsorted(starts, end, side="left") - first
    before = np.cumsum(counts) - counts
    which = np.repeat(first - before, counts) + np.arange(counts.sum())
    return counts, np.asarray(starts[which]) - np.repeat(begin, counts)


def segments_of(
    counts: Int[np.ndarray, " n"], columns: Int[np.ndarray, " total"], width: int
) -> Int32[np.ndarray, "n {width}"]:
    """Segment ids of rows in which segments begin at ``columns`` (and at 0).

    Args:
        counts: how many of the columns belong to each row.
        columns: where a segment begins, row after row; ascending and above 0 within a row.
        width: columns of a row.
    """
    n = counts.size
    runs = counts + 1
    before = np.cumsum(runs) - runs
    row = np.repeat(np.arange(n), runs)
    number = np.arange(row.size) - before[row]  # of the segment within its row, from 0
    start = row * width
    start[number > 0] += columns
    lengths = np.diff(start, append=n * width)
    return np.repeat((number + 1).astype(np.int32), lengths).reshape(n, width)


def positions_of(segments: Integer[np.ndarray, "n T"]) -> Int32[np.ndarray, "n T"]:
    """Positions that restart at 0 wherever the segment changes along a row."""
    n, T = segments.shape
    begins = np.empty((n, T), bool)
    begins[:, :1] = True
    np.not_equal(segments[:, 1:], segments[:, :-1], out=begins[:, 1:])
    start = np.flatnonzero(begins)
    column = (start % max(T, 1)).astype(np.int32)
    offset = np.repeat(column, np.diff(start, append=n * T)).reshape(n, T)
    return np.subtract(np.arange(T, dtype=np.int32), offset, out=offset)


def pack(
    documents: Sequence[np.ndarray], length: int
) -> tuple[Int32[np.ndarray, "n W"], Int32[np.ndarray, "n W"]]:
    """Documents in memory as rows of ids and segments, W = length + 1; ``unpack`` undoes it.

    Every document holds at least one token.
    """
    tokens = np.concatenate([np.empty(0, np.int32), *documents])
    sizes = np.array([document.size for document in documents], np.int64)
    starts = np.cumsum(sizes) - sizes
    begin = np.arange(count_windows(tokens.size, length)) * length
    end = np.minimum(begin + length + 1, tokens.size)
    segments = segments_of(*boundaries(starts, begin, end), length + 1)
    ids = np.zeros_like(segments)
    fill(ids, segments, tokens, begin, end)
    return ids, segments


def fill(
    ids: np.ndarray, segments: np.ndarray, tokens: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> None:
    """Copy windows of a stream into rows of ids; mark what lies beyond the stream as padding.

    One slice a row: four times as fast as one indexing of them all, and it reads a memory map
    page after page.
    """
    width = ids.shape[1]
    for row, (a, b) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        ids[row, : b - a] = tokens[a:b]
        if b - a < width:
            ids[row, b - a :] = 0
            segments[row, b - a :] = 0


def unpack(
    ids: Integer[np.ndarray, "n W"], segments: Integer[np.ndarray, "n W"]
) -> list[np.ndarray]:
    """The documents of consecutive windows of one stream, whole again.

    The token that neighbours share tells whether a document goes on: where one begins right at
    a window, the window before ends in a segment of its own.
    """
    if ids.size == 0:
        return []
    text = segments != 0
    starts = np.zeros(ids.shape, bool)
    starts[:, 1:] = (segments[:, 1:] != segments[:, :-1]) & text[:, 1:]
    starts[1:, 0] = starts[:-1, -1]
    keep = text.copy()
    keep[:-1, -1] = False  # it is the first token of the next row
    stream, cuts = ids[keep], np.flatnonzero(starts[keep])
    return [np.asarray(part) for part in np.split(stream, cuts)]
