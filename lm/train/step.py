"""One optimizer step: gradients of the summed loss in the explicit region, then the update.

The update is left out where the batch's numbers are bad: the state stays as it was, bit for bit,
but for its step.  A select does it, which the compiler fuses into the update of each leaf: it
takes no memory, where a branch (``lax.cond``) would hold both states.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lm.batch import Batch, Loss, Params
from lm.errors import ConfigError
from lm.objectives.objective import Objective
from lm.train.placed import Placed
from lm.train.state import TrainState

Metrics = Mapping[str, Array]
JUDGED = ("loss", "gradient_norm")
"""The metrics by which a step is judged, in the order of its limits."""

Step = Callable[..., tuple[TrainState, Metrics]]
"""(state, batch, limits = none) -> state, metrics; limits are the most that each of JUDGED may be,
float32."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How much is trained, and on how much at a time."""

    steps: int
    """Updates of the whole run."""
    sequences: int
    """Rows of the global batch of one step, over all devices and microbatches."""
    length: int
    """Tokens a row (T)."""
    microbatches: int = 1
    """Pieces of each device's rows whose gradients are summed before the update."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Sizes are positive.

        Raises:
            ConfigError: one that is not.
        """
        for name in ("steps", "sequences", "length", "microbatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name}: {getattr(self, name)} must be 1 or more.")

    @property
    def tokens_per_step(self) -> int:
        """Rows times length, padding among them."""
        return self.sequences * self.length


Gradients = Callable[[Params, Params, Array, Batch], tuple[Params, Loss]]


def gradients(placed: Placed, objective: Objective, microbatches: int) -> Gradients:
    """(trainable, frozen, step key, batch) -> summed gradients, split as the weights are; sums.

    Nothing is divided: the sums of shards and microbatches add up exactly to those of the whole
    batch, whatever the weights of its rows.
    """
    model, explicit = placed.model, placed.explicit

    def summed_loss(trainable: Params, frozen: Params, key: Array, batch: Batch):
        params = {**frozen, **trainable}
        loss = objective.loss(model.logits(params), model.apply(params, batch, key), batch)
        return loss.total, loss

    differentiate = jax.grad(summed_loss, has_aux=True)

    def of_shard(
        trainable: Params, frozen: Params, key: Array, batch: Batch
    ) -> tuple[Params, Loss]:
        if microbatches == 1:
            found, loss = differentiate(trainable, frozen, key, batch)
        else:
            pieces = jax.tree.map(
                lambda x: x.reshape(microbatches, len(x) // microbatches, *x.shape[1:]), batch
            )

            def add(sums: Any, piece: Batch) -> tuple[Any, None]:
                more = differentiate(trainable, frozen, key, piece)
                return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, more), None

            one = jax.tree.map(lambda x: x[0], pieces)
            shapes = jax.eval_shape(differentiate, trainable, frozen, key, one)
            blank = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
            (found, loss), _ = lax.scan(add, blank, pieces)
        return explicit.sum_gradients(found, model.leaves), explicit.sum_tokens(loss)

    shards = explicit.specs(model.leaves)
    each = explicit.region(of_shard, (shards, P(), P(), placed.batch_specs), (shards, P()))
    return lambda trainable, frozen, key, batch: each(trainable, frozen, key, placed.spread(batch))


def train_step(
    placed: Placed,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    microbatches: int,
) -> Step:
    """A pure function of state and batch; losses and accuracy are means over scored tokens.

    Where loss or gradient norm are not finite, or beyond the limits, ``skipped`` is 1 and nothing
    of the state is new but the step.  Both are sums over the whole batch, so that every device
    decides alike.
    """
    summed_gradients = gradients(placed, objective, microbatches)

    def step(
        state: TrainState, batch: Batch, limits: Array | None = None, /
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        found, loss = summed_gradients(state.trainable, state.frozen, key, batch)
        scale = 1.0 / jnp.maximum(loss.weight, 1.0)
        found = jax.tree.map(lambda g: g * scale, found)
        updates, inner = optimizer.update(found, state.optimizer, state.trainable)
        trainable = jax.tree.map(jnp.add, state.trainable, updates)
        means = {name: value * scale for name, value in loss.metrics.items()}
        metrics = {
            "loss": means.pop("nll", loss.total * scale),
            **means,
            "objective": loss.total * scale,
            "gradient_norm": optax.tree.norm(found),
            "learning_rate": jnp.asarray(learning_rate(updates_made(state)), jnp.float32),
            "scored_tokens": loss.weight,
        }
        good = _is_good(metrics, limits)
        metrics["skipped"] = 1.0 - good.astype(jnp.float32)
        trainable, inner = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (trainable, inner),
            (state.trainable, state.optimizer),
        )
        after = TrainState(state.step + 1, trainable, state.frozen, inner, state.key)
        return after, metrics

    return step


def updates_made(state: TrainState) -> Array:
    """Steps less those whose update was left out, as the optimizer counts where it does."""
    counts = optax.tree_utils.tree_get_all_with_path(state.optimizer, "count")
    return counts[-1][1] if counts else state.step


def _is_good(metrics: Metrics, limits: Array | None) -> Array:
    judged = jnp.stack([metrics[name] for name in JUDGED])
    good = jnp.isfinite(judged).all() & jnp.isfinite(metrics["objective"])
    return good if limits is None else good & (judged <= limits).all()
