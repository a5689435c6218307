import pytest

from lm.track.format import count, duration, gib, grouped, percent, rate


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.5, "0.50"),
        (999, "999"),
        (1_000, "1.00 k"),
        (999_999, "1.00 M"),
        (5_120_000, "5.12 M"),
        (124_439_808, "124 M"),
        (1_240_000_000, "1.24 B"),
        (41.9e9, "41.9 B"),
        (2.1e12, "2.10 T"),
        (float("nan"), "nan"),
    ],
)
def test_count_has_three_digits_and_a_letter(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.40 ms"),
        (0.0849, "84.9 ms"),
        (0.41, "0.41 s"),
        (9.994, "9.99 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (4_320, "1 h 12 min"),
        (3_599.7, "1 h"),
        (100_000, "1 d 3 h"),
        (float("inf"), "inf"),
    ],
)
def test_duration_has_two_units_and_never_sixty_of_one(seconds, text):
    assert duration(seconds) == text


def test_small_forms():
    assert grouped(1_234_567) == "1 234 567"
    assert gib(9.84) == "9.8 GiB"
    assert gib(0.0123) == "0.012 GiB"
    assert percent(0.524) == "52 %"
    assert (rate(2e-4), rate(0.1), rate(0.0)) == ("2.0e-4", "1.0e-1", "0")
