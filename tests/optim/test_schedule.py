"""Schedules: exact at their ends, in between as their papers say, refused where they cannot fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import from_plain, to_plain
from lm.errors import ConfigError
from lm.optim.adamw import AdamW
from lm.optim.schedule import Constant, Cosine, InverseSqrt, Wsd

TOTAL = 100
ALL = [
    Constant(peak=0.4, warmup=10),
    Cosine(peak=0.4, warmup=10),
    Wsd(peak=0.4, warmup=10),
    Wsd(peak=0.4, warmup=10, shape="sqrt"),
    InverseSqrt(peak=0.4, warmup=10),
    InverseSqrt(peak=0.4, warmup=10, cooldown=20),
]


def values(schedule, total: int = TOTAL) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(schedule.build(total)))(jnp.arange(total)))


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_warmup_is_a_line_that_wastes_no_update(schedule):
    np.testing.assert_allclose(values(schedule)[:10], 0.4 * np.arange(1, 11) / 10, rtol=1e-6)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_rate_never_rises_after_the_warmup_and_stays_after_the_end(schedule):
    rates = values(schedule)
    assert (np.diff(rates[9:]) <= 1e-8).all()
    assert rates.max() == pytest.approx(0.4)
    assert rates.min() >= 0.0
    built = schedule.build(TOTAL)
    assert float(built(5 * TOTAL)) == pytest.approx(rates[-1], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_traced_and_eager_values_agree(schedule):
    built, traced = schedule.build(TOTAL), values(schedule)
    for n in (0, 9, 10, 50, 85, TOTAL - 1):  # the compiler may reorder float32 sums
        assert float(built(n)) == pytest.approx(traced[n], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (Constant(peak=0.4, warmup=10), 0.4),
        (Cosine(peak=0.4, warmup=10, floor=0.25), 0.1),
        (Wsd(peak=0.4, warmup=10, floor=0.5), 0.2),
        (Wsd(peak=0.4, decay=7, shape="sqrt"), 0.0),
        (InverseSqrt(peak=0.4, warmup=25), 0.2),
        (InverseSqrt(peak=0.4, warmup=25, cooldown=20), 0.0),
    ],
    ids=repr,
)
def test_last_update_has_exactly_the_last_value(schedule, last):
    assert values(schedule)[-1] == pytest.approx(last, abs=1e-7)


def test_cosine_is_half_way_in_the_middle():
    assert values(Cosine(peak=1.0, warmup=20, floor=0.2))[59] == pytest.approx(0.6)


def test_wsd_is_at_its_peak_until_the_decay():
    rates = values(Wsd(peak=0.4, warmup=10, decay=0.2))
    np.testing.assert_allclose(rates[9:80], 0.4, rtol=1e-6)
    np.testing.assert_allclose(rates[80:], 0.4 * (1 - np.arange(1, 21) / 20), atol=1e-7)
    np.testing.assert_array_equal(rates, values(Wsd(peak=0.4, warmup=10, decay=20)))


def test_wsd_sqrt_falls_as_one_minus_sqrt():
    rates = values(Wsd(peak=1.0, decay=25, shape="sqrt"))
    np.testing.assert_allclose(rates[75:], 1 - np.sqrt(np.arange(1, 26) / 25), atol=1e-6)


def test_inverse_sqrt_halves_when_time_is_fourfold():
    rates = values(InverseSqrt(peak=0.4, warmup=20, cooldown=10))
    assert rates[79] == pytest.approx(0.2)
    assert np.diff(rates[89:]) == pytest.approx(np.diff(rates[89:])[0], rel=1e-4)  # a line to 0


def test_a_run_may_be_all_warmup():
    assert values(Cosine(peak=0.4, warmup=TOTAL))[-1] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Cosine(peak=-1e-3), "peak=-0.001"),
        (lambda: Cosine(peak=float("nan")), "peak=nan"),
        (lambda: Constant(peak=1e-3, warmup=-1), "warmup=-1"),
        (lambda: Cosine(peak=1e-3, floor=1.5), "floor=1.5"),
        (lambda: Wsd(peak=1e-3, decay=2.0), "decay=2.0"),
        (lambda: Wsd(peak=1e-3, decay=-3), "decay=-3"),
        (lambda: InverseSqrt(peak=1e-3, warmup=0), "warmup=0"),
        (lambda: InverseSqrt(peak=1e-3, warmup=1, cooldown=-1), "cooldown=-1"),
        (lambda: Cosine(peak=1e-3, warmup=21).build(20), "warmup=21 .* 20 steps"),
        (lambda: Wsd(peak=1e-3, warmup=15, decay=0.5).build(20), "warmup=15 and decay=10"),
        (lambda: InverseSqrt(peak=1e-3, warmup=15, cooldown=9).build(20), "cooldown=9"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_its_values(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


@pytest.mark.parametrize("schedule", [*ALL, Wsd(peak=1.0, decay=5)], ids=repr)
def test_schedules_survive_json(schedule):
    config = AdamW(schedule=schedule)
    again = from_plain(AdamW, to_plain(config))
    assert again == config
    assert type(getattr(again.schedule, "decay", 0)) is type(getattr(schedule, "decay", 0))
