import numpy as np
import pytest

from lm.data.synthetic import Synthetic
from lm.errors import ConfigError


def test_an_id_is_always_followed_by_the_same_one_within_a_document():
    ids, segments = (
        Synthetic(vocab_size=37, seed=3, document_length=20).build(64).read(np.arange(50))
    )
    same = segments[:, 1:] == segments[:, :-1]
    pairs = set(zip(ids[:, :-1][same].tolist(), ids[:, 1:][same].tolist(), strict=True))
    assert len(pairs) == 37
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 37


def test_windows_are_the_same_each_time_and_differ_by_seed():
    a, b = (Synthetic(vocab_size=37, seed=3).build(16).read(np.array([2, 7])) for _ in range(2))
    c = Synthetic(vocab_size=37, seed=4).build(16).read(np.array([2, 7]))
    np.testing.assert_array_equal(a[0], b[0])
    assert not np.array_equal(a[0], c[0])


def test_neighbouring_windows_share_one_token_and_the_last_is_padded():
    source = Synthetic(vocab_size=37, document_length=5, tokens=30).build(8)
    ids, segments = source.read(np.arange(len(source)))
    assert len(source) == 4
    np.testing.assert_array_equal(ids[:-1, -1], ids[1:, 0])
    np.testing.assert_array_equal((segments == 0).sum(axis=1), [0, 0, 0, 3])


def test_pieces_are_the_segments():
    source = Synthetic(vocab_size=37, document_length=5, tokens=30).build(8)
    _, segments = source.read(np.arange(len(source)))
    for row in range(len(source)):
        pieces = source.documents(row)
        counts = np.bincount(segments[row])[1:]
        assert [p.stop - p.start for p in pieces] == counts.tolist()


@pytest.mark.parametrize("wrong", [{"vocab_size": 1}, {"document_length": 0}, {"tokens": 1}])
def test_sizes_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match="at least 2"):
        Synthetic(**{"vocab_size": 9, **wrong})
