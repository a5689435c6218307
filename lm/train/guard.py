"""Bad numbers: which steps have them, and what a run does about them.

A step whose loss or gradient norm is not finite is skipped: the compiled step leaves its update
out.  Whether one *spikes* is decided here, on the host, from the steps before it, by the same
numbers on every process.

The rule: a value spikes where it is more than ``deviations`` robust standard deviations above the
median of the last ``window`` finite values; a robust standard deviation is 1.4826 times the median
distance from the median (Hampel 1974; Leys et al. 2013 on why not the mean and its deviation, which
a spike shifts itself), and no less than a share of the median, so that a quiet series is no cause
for alarm; the norms of small runs more than double now and then, without harm.  128 steps and six
deviations are those of SkipStepOptimizer in OLMo-core, which trained OLMo 2 (arXiv:2501.00656) and
goes by mean and standard deviation.  Until half a window is known nothing spikes.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import CheckpointError, ConfigError
from lm.train.step import JUDGED

LAG = 2
"""The host has read the metrics of step n - 2, and perhaps no later ones, when step n begins."""
TO_DEVIATION = 1.4826
"""From the median distance to the median, to the standard deviation of normal noise."""
LEAST = {"loss": 0.01, "gradient_norm": 0.3}
"""The least standard deviation, as a share of the median."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What a run does about bad numbers; may change at any resume."""

    stop_after_skips: int = 10
    """Updates left out one after another that end the run."""
    on_spike: Literal["report", "skip", "rollback"] = "report"
    """A spike is reported; or its update is left out; or the run goes back to its newest
    checkpoint and on beyond the data between."""
    window: int = 128
    """Steps that a spike is measured by."""
    deviations: float = 6.0
    """Robust standard deviations above the median at which a spike begins."""
    rollbacks: int = 3
    """How often a run goes back before it ends."""
    recompute_every: int | None = None
    """Steps from one that is computed twice and compared to the next; None: none is."""

    def __post_init__(self) -> None:
        """Counts are positive.

        Raises:
            ConfigError: one that is not.
        """
        least = {"stop_after_skips": 1, "window": 4, "rollbacks": 0, "recompute_every": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"guard.{name}: {value} must be {lowest} or more.")
        if not self.deviations > 0:
            raise ConfigError(f"guard.deviations: {self.deviations} must be more than 0.")


class Finding(NamedTuple):
    """A step with bad numbers."""

    step: int
    skipped: bool
    """Whether its update was left out."""
    spike: bool
    """Finite, but beyond its limit."""
    why: str


class Watch:
    """The numbers of a run as they come; its decisions follow from steps alone, not from when.

    ``skips``, ``in_a_row``, ``spikes`` and ``rollbacks`` are counts of the whole run: they, and the
    values that the next spike is measured by, are saved with the data position.
    """

    def __init__(self, guard: Guard, saved: Mapping[str, Any] | None = None) -> None:
        """Begin, or go on from what ``saved`` gave.

        Raises:
            CheckpointError: that is no such thing.
        """
        self.guard = guard
        self.skips = self.in_a_row = self.spikes = self.rollbacks = 0
        self.heard: deque[tuple[int, float, float]] = deque(maxlen=guard.window + LAG - 1)
        """(step, loss, gradient norm) of the last steps, those alone whose values are finite."""
        if saved is None:
            return
        try:
            for name in COUNTS:
                setattr(self, name, int(saved[name]))
            for step, *values in saved["heard"]:
                loss, norm = map(float, values)
                self.heard.append((int(step), loss, norm))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"data.json: its part 'guard' is damaged ({type(error).__name__}: {error}). Use "
                "another checkpoint, or copy this one again."
            ) from error

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return counts | {"heard": [list(entry) for entry in self.heard]}

    def limits(self, step: int) -> np.ndarray:
        """The most that the values of JUDGED may be in this step, float32.

        They follow from the steps up to ``step - LAG``, whatever later ones are known by now.
        """
        known = [entry for entry in self.heard if entry[0] <= step - LAG][-self.guard.window :]
        if 2 * len(known) < self.guard.window:
            return np.full(len(JUDGED), np.inf, np.float32)
        _, *series = zip(*known, strict=True)
        most = [
            limit(values, self.guard.deviations, LEAST[name])
            for name, values in zip(JUDGED, series, strict=True)
        ]
        return np.asarray(most, np.float32)

    def hear(self, step: int, values: Mapping[str, float]) -> Finding | None:
        """Take a step's metrics, in the order of steps; what is wrong with them."""
        judged = [values[name] for name in JUDGED]
        limits = self.limits(step).tolist()
        skipped = bool(values["skipped"])
        over = [
            f"{name} {value:.4g} is beyond {most:.4g}"
            for name, value, most in zip(JUDGED, judged, limits, strict=True)
            if math.isfinite(value) and value > most
        ]
        lost = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if all(map(math.isfinite, judged)):
            self.heard.append((step, judged[0], judged[1]))
        spike = bool(over) and not lost
        self.skips += skipped
        self.spikes += spike
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if not (skipped or spike):
            return None
        return Finding(step, skipped, spike, ", ".join(lost or over))


COUNTS = ("skips", "in_a_row", "spikes", "rollbacks")


def limit(values: Iterable[float], deviations: float, least: float) -> float:
    """The value at which a spike begins after these; the rule stands above."""
    known = list(values)
    middle = statistics.median(known)
    distance = statistics.median(abs(value - middle) for value in known)
    return middle + deviations * max(TO_DEVIATION * distance, least * abs(middle))


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def all_finite(tree: Any) -> bool:
    """Whether every number of a tree is finite; reads it once, and waits."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return not leaves or bool(jax.device_get(_finite(leaves)))
