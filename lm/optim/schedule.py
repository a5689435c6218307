"""Learning-rate schedules: small configs that join Optax's own pieces.

One convention holds for all of them.  Update n (counted from 0) is made with the value at
t = n + 1: the warm-up is the straight line peak * t / warmup, so that the first update already
moves and update ``warmup - 1`` is the first with the peak; the last update, t = total steps, is
made with exactly the last value of the schedule.  Beyond it the value stays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax.numpy as jnp
import optax

from lm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Warm-up, then the peak to the end."""

    peak: float
    """Highest learning rate."""
    warmup: int = 0
    """Updates of linear warm-up."""

    def __post_init__(self):
        _check_start(self.peak, self.warmup)

    def build(self, total_steps: int) -> optax.Schedule:
        """The schedule of a run of ``total_steps`` updates.

        Raises:
            ConfigError: the warm-up is longer than the run.
        """
        _check_fits(total_steps, warmup=self.warmup)
        return _join(self.peak, self.warmup, [(optax.constant_schedule(self.peak), total_steps)])


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Warm-up, then half a cosine down to a floor (Loshchilov 2016, arXiv:1608.03983)."""

    peak: float
    """Highest learning rate."""
    warmup: int = 0
    """Updates of linear warm-up."""
    floor: float = 0.1
    """Learning rate of the last update, as a fraction of the peak."""

    def __post_init__(self):
        _check_start(self.peak, self.warmup)
        _check_fraction("floor", self.floor)

    def build(self, total_steps: int) -> optax.Schedule:
        """The schedule of a run of ``total_steps`` updates.

        Raises:
            ConfigError: the warm-up is longer than the run.
        """
        _check_fits(total_steps, warmup=self.warmup)
        steps = max(total_steps - self.warmup, 1)  # no fall where the run is all warm-up
        fall = optax.cosine_decay_schedule(self.peak, steps, alpha=self.floor)
        return _join(self.peak, self.warmup, [(fall, total_steps)])


@dataclass(frozen=True, kw_only=True)
class Wsd:
    """Warm-up, stable at the peak, decay at the end (Hu 2024, arXiv:2404.06395)."""

    peak: float
    """Highest learning rate."""
    warmup: int = 0
    """Updates of linear warm-up."""
    decay: int | float = 0.2
    """The last part, in which the rate falls: a whole number of updates, or a fraction of the
    run written with a point (0.2)."""
    floor: float = 0.0
    """Learning rate of the last update, as a fraction of the peak."""
    shape: Literal["linear", "sqrt"] = "linear"
    """How it falls: a straight line, or 1 - sqrt (Hägele 2024, arXiv:2405.18392)."""

    def __post_init__(self):
        _check_start(self.peak, self.warmup)
        _check_fraction("floor", self.floor)
        if isinstance(self.decay, float):
            _check_fraction("decay", self.decay)
        elif self.decay < 0:
            raise ConfigError(f"decay={self.decay}: a number of updates cannot be negative.")

    def build(self, total_steps: int) -> optax.Schedule:
        """The schedule of a run of ``total_steps`` updates.

        Raises:
            ConfigError: warm-up and decay together are longer than the run.
        """
        decay = self.decay
        steps = round(decay * total_steps) if isinstance(decay, float) else decay
        _check_fits(total_steps, warmup=self.warmup, decay=steps)
        stable = (optax.constant_schedule(self.peak), total_steps - steps)
        low = self.floor * self.peak
        if self.shape == "linear":
            fall = optax.linear_schedule(self.peak, low, steps)
        else:
            fall = _sqrt_schedule(self.peak, low, steps)
        return _join(self.peak, self.warmup, [stable, (fall, total_steps)] if steps else [stable])


@dataclass(frozen=True, kw_only=True)
class InverseSqrt:
    """Warm-up, then peak * sqrt(warmup / t) (Vaswani 2017, arXiv:1706.03762), then a cooldown.

    A run can be made longer without a change to what went before, but for the cooldown, which
    falls linearly to 0 (Zhai 2021, arXiv:2106.04560).
    """

    peak: float
    """Highest learning rate."""
    warmup: int
    """Updates of linear warm-up; also the time scale of the fall, so at least 1."""
    cooldown: int = 0
    """Updates at the end in which the rate falls linearly to 0."""

    def __post_init__(self):
        _check_start(self.peak, self.warmup)
        if self.warmup < 1:
            raise ConfigError("warmup=0: InverseSqrt falls as sqrt(warmup / t); use at least 1.")
        if self.cooldown < 0:
            raise ConfigError(f"cooldown={self.cooldown}: a number of updates cannot be negative.")

    def build(self, total_steps: int) -> optax.Schedule:
        """The schedule of a run of ``total_steps`` updates.

        Raises:
            ConfigError: warm-up and cooldown together are longer than the run.
        """
        _check_fits(total_steps, warmup=self.warmup, cooldown=self.cooldown)
        warmup, turn = self.warmup, total_steps - self.cooldown

        def fall(count):
            return self.peak * (warmup / (count + warmup)) ** 0.5

        if not self.cooldown:
            return _join(self.peak, warmup, [(fall, total_steps)])
        top = self.peak * math.sqrt(warmup / max(turn, warmup))
        cool = optax.linear_schedule(top, 0.0, self.cooldown)
        return _join(self.peak, warmup, [(fall, turn), (cool, total_steps)])


Schedule: TypeAlias = Cosine | Wsd | InverseSqrt | Constant
"""The menu of schedules."""


def _join(peak: float, warmup: int, parts: Sequence[tuple[optax.Schedule, int]]) -> optax.Schedule:
    """A warm-up, then each schedule up to its end; maps n, the update's number, to t = n + 1."""
    pieces = [(optax.linear_schedule(0.0, peak, warmup), warmup)] if warmup else []
    pieces += parts
    joined = optax.join_schedules([s for s, _ in pieces], [end for _, end in pieces[:-1]])
    last = pieces[-1][1]

    def schedule(count):
        rate = joined(jnp.minimum(count + 1, last))
        return jnp.maximum(rate, 0.0)  # rounding may take a fall to 0 a hair below it

    return schedule


def _sqrt_schedule(start: float, end: float, steps: int) -> optax.Schedule:
    """From start to end as 1 - sqrt of the way gone: steep at first."""

    def schedule(count):
        return start + (end - start) * jnp.sqrt(jnp.clip(count / steps, 0.0, 1.0))

    return schedule


def _check_start(peak: float, warmup: int) -> None:
    if not (peak > 0 and math.isfinite(peak)):
        raise ConfigError(f"peak={peak}: a learning rate must be a positive number, such as 3e-4.")
    if warmup < 0:
        raise ConfigError(f"warmup={warmup}: a number of updates cannot be negative.")


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={value}: a fraction must lie between 0 and 1.")


def _check_fits(total_steps: int, **parts: int) -> None:
    if sum(parts.values()) > total_steps:
        named = " and ".join(f"{name}={steps}" for name, steps in parts.items() if steps)
        raise ConfigError(
            f"optimizer.schedule: {named} updates do not fit in a run of {total_steps} steps. "
            "Lower them, or raise training.steps."
        )
