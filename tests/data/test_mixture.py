import math

import numpy as np
import pytest

from lm.config import from_plain, to_plain
from lm.data.mixture import Blend, Mixture, Weighted, whole_shares
from lm.data.shards import Shards
from lm.data.synthetic import Synthetic, SyntheticSource
from lm.errors import ConfigError, CorpusError


def source_of(windows: int, length: int = 4) -> SyntheticSource:
    return Synthetic(vocab_size=50, tokens=windows * length + 1).build(length)


def blend_of(weights, windows=17) -> Blend:
    return Blend([source_of(windows)] * len(weights), weights)


def deviation(weights, count: int) -> np.ndarray:
    """The greatest distance of any prefix from each source's part of it."""
    samples = blend_of(weights).locate(np.arange(count), seed=0)
    given = np.cumsum(samples.source[:, None] == np.arange(len(weights)), axis=0)
    shares = np.array(weights) / np.sum(weights)
    return np.abs(given - np.arange(1, count + 1)[:, None] * shares).max(axis=0)


@pytest.mark.parametrize(
    "weights",
    [
        (1.0,),
        (1.0, 1.0),
        (0.7, 0.2, 0.1),
        (1 / 3, 1 / 3, 1 / 3),
        (3.2e9, 1.7e8, 4.4e6),
        (1e-3, 1.0),
    ],
)
def test_after_any_prefix_each_of_three_sources_has_its_part_within_a_sample(weights):
    assert (deviation(weights, 20_000) <= 1.0).all()


@pytest.mark.parametrize("seed", range(6))
def test_after_any_prefix_each_of_many_sources_has_its_part_within_two_samples(seed):
    rng = np.random.default_rng(seed)
    weights = tuple((10.0 ** rng.uniform(-3, 0, rng.integers(4, 20))).tolist())
    assert (deviation(weights, 20_000) < 2.0).all()


def test_decimal_weights_are_exact():
    assert whole_shares([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_shares([2.0, 1.0]) == [2, 1]
    assert whole_shares([1 / 3, 2 / 3]) == [1, 2]


def test_other_weights_are_rounded_finely_and_never_to_nothing():
    whole = whole_shares([math.pi, math.e])
    assert whole[0] / whole[1] == pytest.approx(math.pi / math.e, rel=1e-8)
    assert min(whole_shares([1e-30, 1.0])) == 1


def test_far_samples_keep_their_shares():
    start = 2**40
    near = blend_of((0.7, 0.2, 0.1)).locate(np.arange(10_000), seed=0)
    far = blend_of((0.7, 0.2, 0.1)).locate(start - start % 10 + np.arange(10_000), seed=0)
    np.testing.assert_array_equal(near.source, far.source)
    assert far.epoch.min() > near.epoch.max()


def test_every_epoch_of_every_source_holds_each_window_once_and_in_a_new_order():
    windows = 100
    samples = blend_of((0.5, 0.3, 0.2), windows).locate(np.arange(3_000), seed=4)
    for source in range(3):
        orders = []
        for epoch in range(5 if source < 2 else 3):
            mine = samples.window[(samples.source == source) & (samples.epoch == epoch)]
            np.testing.assert_array_equal(np.sort(mine), np.arange(windows))
            orders.append(tuple(mine))
        assert len(set(orders)) == len(orders)
    first = [tuple(samples.window[(samples.source == s) & (samples.epoch == 0)]) for s in range(3)]
    assert len(set(first)) == 3


def test_a_sample_is_found_alone_as_among_others():
    blend = blend_of((0.5, 0.3, 0.2))
    together = blend.locate(np.arange(500), seed=9)
    for number in (0, 1, 123, 499):
        alone = blend.locate(np.array([number]), seed=9)
        assert [int(part[0]) for part in alone] == [int(part[number]) for part in together]


def test_read_rows_are_the_windows_of_their_sources():
    sources = [Synthetic(vocab_size=50, seed=s, tokens=1000).build(8) for s in range(3)]
    blend = Blend(sources, (0.5, 0.3, 0.2))
    samples = blend.locate(np.arange(64), seed=1)
    ids, segments = blend.read(samples)
    for row in range(64):
        expected = sources[samples.source[row]].read(samples.window[row : row + 1])
        np.testing.assert_array_equal(ids[row], expected[0][0])
        np.testing.assert_array_equal(segments[row], expected[1][0])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(ConfigError, match="must be above 0"):
        Weighted(source=Synthetic(vocab_size=9), weight=weight)


def test_an_empty_mixture_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        Mixture(sources=())


def test_a_mixture_survives_json():
    mixture = Mixture(
        sources=(
            Weighted(source=Shards(path="data/a"), weight=0.7),
            Weighted(source=Synthetic(vocab_size=9), weight=0.3),
        )
    )
    assert from_plain(Mixture, to_plain(mixture)) == mixture


def test_a_source_that_is_not_there_is_named():
    mixture = Mixture(sources=(Weighted(source=Shards(path="nowhere/at/all")),))
    with pytest.raises(CorpusError, match="nowhere/at/all"):
        mixture.build(16)


def test_a_length_of_0_is_refused():
    mixture = Mixture(sources=(Weighted(source=Synthetic(vocab_size=9)),))
    with pytest.raises(ConfigError, match="length 0"):
        mixture.build(0)
