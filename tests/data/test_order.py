import numpy as np
import pytest

from lm.data.order import key_of, permute

GOLDEN = [11, 4, 0, 2, 9, 1, 7, 8, 6, 5, 3, 10]


def order(length: int, *, seed: int = 0, source: int = 0, epoch: int = 0) -> np.ndarray:
    every = np.arange(length)
    key = key_of(seed, np.full(length, source), np.full(length, epoch))
    return permute(every, length, key)


@pytest.mark.parametrize("length", [*range(1, 40), 63, 64, 65, 1000, 1024, 4097, 99991])
def test_the_order_is_a_bijection_of_any_length(length):
    np.testing.assert_array_equal(np.sort(order(length)), np.arange(length))


def test_some_indices_of_a_huge_range_stay_in_it_and_apart():
    length = 10**12 + 39
    index = np.arange(length - 10_000, length)
    out = permute(index, length, key_of(1, np.zeros_like(index), np.zeros_like(index)))
    assert np.unique(out).size == index.size
    assert out.min() >= 0
    assert out.max() < length


def test_each_index_may_have_a_key_of_its_own():
    length = 1001
    index, epoch = np.arange(length), np.arange(length) % 3
    mixed = permute(index, length, key_of(5, np.zeros_like(index), epoch))
    for e in range(3):
        alone = order(length, seed=5, epoch=e)
        np.testing.assert_array_equal(mixed[epoch == e], alone[epoch == e])


@pytest.mark.parametrize("other", [{"seed": 1}, {"source": 1}, {"epoch": 1}, {"seed": -1}])
def test_seed_source_and_epoch_each_give_an_unrelated_order(other):
    a, b = order(10_000), order(10_000, **other)
    assert (a == b).mean() < 0.002
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_seed_source_and_epoch_are_not_exchangeable():
    keys = {
        int(key_of(seed, np.array([source]), np.array([epoch]))[0])
        for seed in range(8)
        for source in range(8)
        for epoch in range(8)
    }
    assert len(keys) == 8**3


@pytest.mark.parametrize("length", [1000, 65_536, 99_991])
def test_the_order_has_no_phase(length):
    """What gives an affine order away: few distances between neighbours, a correlation at a lag,
    a line in the spectrum."""
    out = order(length)
    distances = np.diff(out) % length
    # Of m draws from m values, 1 - 1/e are different.
    assert np.unique(distances).size / (length - 1) == pytest.approx(1 - np.exp(-1), abs=0.05)
    centred = out - out.mean()
    power = np.abs(np.fft.rfft(centred)) ** 2
    correlation = np.fft.irfft(np.abs(np.fft.fft(centred, 2 * length)[: length + 1]) ** 2)
    lags = correlation[1 : length // 2] / correlation[0]
    assert np.abs(lags).max() < 6 / np.sqrt(length)
    assert power[1:].max() / power[1:].mean() < 4 * np.log(length)


def test_an_affine_order_would_fail_that_test():
    length = 65_536
    distances = np.diff((np.arange(length) * 40_503 + 7) % length) % length
    assert np.unique(distances).size == 1


def test_first_places_are_spread_evenly_over_epochs():
    length, epochs = 10, 20_000
    index = np.zeros(epochs, np.int64)
    out = permute(index, length, key_of(3, np.zeros_like(index), np.arange(epochs)))
    counts = np.bincount(out, minlength=length)
    assert np.abs(counts - epochs / length).max() < 6 * np.sqrt(epochs / length)


def test_the_order_never_changes_between_versions():
    """A run that resumes under a newer version must see the batches it would have seen."""
    assert order(12, seed=3, source=1, epoch=2).tolist() == GOLDEN
