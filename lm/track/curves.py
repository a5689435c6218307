"""What stands behind a chart: smoothing, thinning, and the ticks of an axis."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lm.track.format import count


class Series(NamedTuple):
    """One curve: values over steps."""

    name: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]


class Axis(NamedTuple):
    """The range of an axis, whether it is logarithmic, and (value, label) of its ticks."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def place(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Where values lie along the axis: 0 at its low end, 1 at its high end."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (np.log(np.clip(values, self.low, self.high)) - low) / (high - low)
        return (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)


def smooth(y: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """A centred moving average over ``window`` values; it narrows towards both ends.

    Symmetric, so that it lags behind no fall; at the ends it becomes the value itself.
    """
    sums = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    half = np.minimum(np.minimum(index, index[::-1]), window // 2)
    return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def thin(series: Series, points: int) -> Series:
    """At most about ``points`` points: of each stretch its lowest and its highest value."""
    n = len(series.x)
    if n <= points:
        return series
    kept = {0, n - 1}
    for stretch in np.array_split(np.arange(n), max(points // 2, 1)):
        values = series.y[stretch]
        kept |= {int(stretch[values.argmin()]), int(stretch[values.argmax()])}
    index = np.array(sorted(kept))
    return Series(series.name, series.x[index], series.y[index])


def value_axis(values: Float[np.ndarray, " n"], *, from_zero: bool, log: bool) -> Axis:
    """An axis that holds all the values, with 4 to 8 round ticks.

    Logarithmic only where asked for, where all values are positive and the largest is at least
    twice the smallest.
    """
    low, high = float(values.min()), float(values.max())
    if log and low > 0 and high / low >= 2:
        low, high = low / 1.03, high * 1.03
        return Axis(low, high, log=True, ticks=_labels(_log_ticks(low, high)))
    if from_zero:
        low = min(low, 0.0)
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.5
    step = _round_step((high - low) / 5)
    low = low if from_zero and low == 0 else math.floor(low / step) * step
    high = math.ceil(high / step - 1e-9) * step
    return Axis(low, high, log=False, ticks=_labels(_linear_ticks(low, high, step)))


def step_axis(last: int) -> Axis:
    """The axis of steps, from 0 to the last one."""
    high = float(max(last, 1))
    step = max(_round_step(high / 5), 1.0)
    ticks = [t for t in _linear_ticks(0.0, high, step) if t <= high]
    return Axis(0.0, high, log=False, ticks=_labels(ticks))


def _round_step(step: float) -> float:
    size = 10.0 ** math.floor(math.log10(step))
    return next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= step * 0.999)


def _linear_ticks(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between, as dense as keeps them at most 8."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [10.0**d * m for d in decades for m in digits if low <= 10.0**d * m <= high]
        if len(ticks) <= 8:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 8)]


def _labels(ticks: Sequence[float]) -> tuple[tuple[float, str], ...]:
    return tuple((tick, axis_label(tick)) for tick in ticks)


def axis_label(value: int | float) -> str:
    """A tick's number, as short as it goes: ``0``, ``0.25``, ``12 k``, ``3e-4``."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        number, letter = count(value).split(" ")
        return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {letter}"
    if abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"
