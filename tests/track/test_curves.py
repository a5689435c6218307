"""What charts rest on: smoothing without lag, thinning without loss of peaks, round ticks."""

import numpy as np
import pytest

from lm.track.curves import Series, axis_label, smooth, step_axis, thin, value_axis


def test_smoothing_keeps_a_straight_line_to_its_very_ends():
    line = np.linspace(5.0, 1.0, 101)
    np.testing.assert_allclose(smooth(line, 21), line, rtol=1e-9)


def test_smoothing_averages_noise_away():
    noise = np.random.default_rng(0).normal(size=2000)
    assert smooth(noise, 101)[100:-100].std() < 0.2


def test_thinning_keeps_ends_order_and_every_extreme():
    x, y = np.arange(10_000.0), np.random.default_rng(0).normal(size=10_000)
    y[1234], y[8765] = 50.0, -50.0
    thinned = thin(Series("s", x, y), 400)
    assert len(thinned.x) <= 402
    assert (np.diff(thinned.x) > 0).all()
    assert (thinned.x[0], thinned.x[-1]) == (0.0, 9_999.0)
    assert (thinned.y.max(), thinned.y.min()) == (50.0, -50.0)
    np.testing.assert_array_equal(thinned.y, y[thinned.x.astype(int)])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("low", [1e-7, 0.03, 1.0, 1.99, 9.7e4])
@pytest.mark.parametrize("ratio", [1.0, 1.001, 1.9, 2.1, 8.0, 300.0, 1e7])
def test_an_axis_holds_its_values_and_has_few_distinct_ticks(low, ratio, log):
    values = np.array([low, low * ratio])
    axis = value_axis(values, from_zero=False, log=log)
    assert axis.low <= low * (1 + 1e-9)
    assert axis.high >= low * ratio * (1 - 1e-9)
    ticks = [tick for tick, _ in axis.ticks]
    assert 2 <= len(ticks) <= 9
    assert ((axis.place(np.array(ticks)) >= 0) & (axis.place(np.array(ticks)) <= 1)).all()
    if ratio != 1.001:  # there the labels would need more digits than a chart has room for
        assert len({label for _, label in axis.ticks}) == len(ticks)


def test_places_run_from_0_to_1_on_both_scales():
    for log in (False, True):
        axis = value_axis(np.array([1.0, 100.0]), from_zero=False, log=log)
        assert axis.log == log
        np.testing.assert_allclose(axis.place(np.array([axis.low, axis.high])), [0, 1])
    middle = value_axis(np.array([1.0, 100.0]), from_zero=False, log=True).place(np.array([10.0]))
    np.testing.assert_allclose(middle, 0.5)


def test_a_value_at_or_below_zero_forbids_a_logarithm():
    assert not value_axis(np.array([0.0, 100.0]), from_zero=False, log=True).log


@pytest.mark.parametrize("last", [0, 1, 2, 7, 100, 1_200, 21_400, 1_000_000])
def test_steps_have_whole_ticks_from_zero(last):
    axis = step_axis(last)
    assert axis.ticks[0] == (0.0, "0")
    assert all(float(tick).is_integer() for tick, _ in axis.ticks)
    assert len({label for _, label in axis.ticks}) == len(axis.ticks) <= 7


def test_labels_are_short():
    values = [0, 0.25, 3e-4, 12_500, 2e6, 0.05, 1000]
    assert [axis_label(v) for v in values] == [
        "0", "0.25", "3e-4", "12.5 k", "2 M", "0.05", "1 k"
    ]  # fmt: skip
