import numpy as np
import pytest

from lm.data.packing import count_windows, pack, positions_of, unpack


@pytest.mark.parametrize("length", [1, 2, 7, 31, 32, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_unpacked_documents_are_those_that_were_packed(seed, length, make_documents):
    documents = make_documents(seed, count=30)
    unpacked = unpack(*pack(documents, length))
    assert len(unpacked) == len(documents)
    for found, expected in zip(unpacked, documents, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("length", [1, 3, 8])
def test_documents_that_begin_right_at_a_window_survive(length):
    documents = [np.arange(1, 1 + size) for size in (length, length, 2 * length, 1, length + 1)]
    unpacked = unpack(*pack(documents, length))
    assert [list(d) for d in unpacked] == [list(d) for d in documents]


def test_segments_are_the_documents_of_each_row_counted_by_hand():
    documents = [np.array([5, 6, 7]), np.array([8, 9]), np.array([10, 11, 12, 13])]
    ids, segments = pack(documents, 4)
    np.testing.assert_array_equal(ids, [[5, 6, 7, 8, 9], [9, 10, 11, 12, 13]])
    np.testing.assert_array_equal(segments, [[1, 1, 1, 2, 2], [1, 2, 2, 2, 2]])
    ids, segments = pack(documents, 5)
    np.testing.assert_array_equal(ids, [[5, 6, 7, 8, 9, 10], [10, 11, 12, 13, 0, 0]])
    np.testing.assert_array_equal(segments, [[1, 1, 1, 2, 2, 3], [1, 1, 1, 1, 0, 0]])


@pytest.mark.parametrize("seed", range(3))
def test_positions_count_from_0_in_each_segment(seed):
    rng = np.random.default_rng(seed)
    segments = np.cumsum(rng.random((9, 50)) < 0.2, axis=1).astype(np.int32)
    expected = np.zeros_like(segments)
    for row in range(9):
        for t in range(1, 50):
            if segments[row, t] == segments[row, t - 1]:
                expected[row, t] = expected[row, t - 1] + 1
    np.testing.assert_array_equal(positions_of(segments), expected)


@pytest.mark.parametrize(
    ("tokens", "length", "windows"), [(0, 4, 0), (1, 4, 0), (2, 4, 1), (5, 4, 1), (6, 4, 2)]
)
def test_every_token_but_the_first_is_a_target_of_one_window(tokens, length, windows):
    assert count_windows(tokens, length) == windows


def test_nothing_packs_to_no_row_and_back():
    ids, segments = pack([], 8)
    assert ids.shape == segments.shape == (0, 9)
    assert unpack(ids, segments) == []
