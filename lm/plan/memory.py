"""A device's memory at the peak of a step, and what it is made of."""

import math
from typing import Any, NamedTuple

import jax

from lm.plan.compiled import Built
from lm.train.memory import bytes_on_device
from lm.train.program import Program

GIB = 2**30


class Hbm(NamedTuple):
    """GiB of one device at the peak; the parts sum to ``peak``."""

    limit: float | None
    """What a program may use; None where nothing is published."""
    peak: float
    parameters: float
    optimizer: float
    gradients: float
    """The float32 sums in the shape of the weights' shards, as far as they live at the peak."""
    activations: float
    """What the traced backward pass keeps of the forward pass, as far as it lives at the peak."""
    temporaries: float
    """The rest: gathered weights, logits, a block's own values, the batch."""
    code: float

    @property
    def short(self) -> float:
        """GiB that are lacking."""
        return max(0.0, self.peak - self.limit) if self.limit is not None else 0.0


class Shards(NamedTuple):
    """Bytes of one device that the shapes tell without a compiler."""

    parameters: float
    optimizer: float
    gradients: float


def shards(program: Program) -> Shards:
    """One device's part of parameters, optimizer state and float32 gradients."""
    weights = jax.tree.leaves((program.state.trainable, program.state.frozen))
    trained = jax.tree.leaves(program.state.trainable)
    return Shards(
        float(sum(map(bytes_on_device, weights))),
        float(sum(map(bytes_on_device, jax.tree.leaves(program.state.optimizer)))),
        float(sum(4 * _numbers(x) for x in trained)),
    )


def hbm(built: Built, held: Shards, kept_bytes: float, limit_gib: float | None) -> Hbm:
    """What the peak is made of.

    Arguments and code are exact.  Activations and gradients are sizes known from the trace; where
    the compiler needs less than them (it reuses one's memory for the other, or computes something
    again), the gradients give way first, and the rest is never negative.

    Args:
        built: the compiler's answer; one that does not fit says what it needs.
        held: of ``shards``.
        kept_bytes: what the backward pass keeps, of ``lm.plan.trace``.
        limit_gib: memory of a device that a program may use.
    """
    code = 0.0
    if built.sizes is not None:
        code, peak = built.sizes.code, built.sizes.peak + built.sizes.code
    elif built.shortage is not None:
        peak = built.shortage.needed
    else:
        peak = held.parameters + held.optimizer + held.gradients + kept_bytes
    left = max(0.0, peak - held.parameters - held.optimizer - code)
    activations = min(kept_bytes, left)
    gradients = min(held.gradients, left - activations)
    rest = left - activations - gradients
    if built.shortage is not None:
        limit_gib = built.shortage.available / GIB
    sizes = (peak, held.parameters, held.optimizer, gradients, activations, rest, code)
    return Hbm(limit_gib, *(size / GIB for size in sizes))


def _numbers(x: Any) -> int:
    return math.prod(x.shape if x.sharding is None else x.sharding.shard_shape(x.shape))
