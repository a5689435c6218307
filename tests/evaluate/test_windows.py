"""Every token but a document's first is predicted once, from what came before it in its window."""

import numpy as np
import pytest

from lm.evaluate.windows import Row, batches_of, rows_of


def numbered(sizes: list[int]) -> list[np.ndarray]:
    """Documents whose ids tell document and place."""
    return [1000 * (d + 1) + np.arange(n) for d, n in enumerate(sizes)]


SIZES = [1, 2, 8, 9, 10, 17, 40, 3, 3, 5, 1, 9, 26, *([4] * 30)]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64])
def test_every_token_but_the_first_is_a_target_once_after_its_predecessor(length: int) -> None:
    documents = numbered(SIZES)
    targets: list[int] = []
    for row in rows_of(documents, length):
        scored = row.segments != 0
        assert np.array_equal(row.targets[scored], row.ids[scored] + 1)
        targets += row.targets[scored].tolist()
    expected = [int(i) for d in documents for i in d[1:]]
    assert sorted(targets) == sorted(expected)


def test_windows_begin_every_length_tokens_and_positions_count_within_them() -> None:
    for row in rows_of(numbered(SIZES), 8):
        for segment in range(1, row.segments.max() + 1):
            here = row.segments == segment
            places = row.ids[here] % 1000
            assert places[0] % 8 == 0
            assert np.array_equal(places - places[0], np.arange(places.size))
            assert np.array_equal(row.positions[here], np.arange(places.size))


def test_rows_are_filled_and_padding_is_blank() -> None:
    rows = list(rows_of(numbered(SIZES), 64))
    used = [int((row.segments != 0).sum()) for row in rows]
    assert sum(used) == sum(SIZES) - len(SIZES)
    assert len(rows) <= -(-sum(used) // 64) + 1
    for row in rows:
        assert not np.any(np.stack(row)[:, row.segments == 0])


def test_many_windows_wait_for_room_without_end() -> None:
    """A stream of documents that never fill a row gives rows while it runs."""
    rows = rows_of((np.arange(6) for _ in range(10**9)), 8)
    first = [next(rows) for _ in range(3)]
    assert [int((row.segments != 0).sum()) for row in first] == [5, 5, 5]


@pytest.mark.parametrize("count", [1, 3, 100])
def test_batches_hold_the_same_rows_whatever_their_size(count: int) -> None:
    def stacked(rows: list[Row]) -> list[np.ndarray]:
        return [np.stack(part) for part in zip(*rows, strict=True)]

    rows = stacked(list(rows_of(numbered(SIZES), 8)))
    batches = list(batches_of(rows_of(numbered(SIZES), 8), count, 8))
    joined = [
        np.concatenate(part)
        for part in zip(*[(*b.inputs, b.targets) for b in batches], strict=True)
    ]
    n = len(rows[0])
    assert len(batches) == -(-n // count)
    for found, expected in zip(joined, rows, strict=True):
        assert np.array_equal(found[:n], expected)
        assert not found[n:].any()
    weights = np.concatenate([b.weights for b in batches])
    assert np.array_equal(weights[:n], rows[1] != 0)
    assert not weights[n:].any()
