"""What a run compiles, built by shapes alone: planning, training and tests compile the same."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm.batch import Batch
from lm.errors import ShardingError
from lm.layers.execution import HOST_MEMORY
from lm.objectives.objective import Objective
from lm.optim.optimizer import Optimizer
from lm.optim.shardings import state_shardings
from lm.train.placed import Placed, row_shards
from lm.train.state import TrainState
from lm.train.step import JUDGED, Metrics, Step, Training, train_step


@runtime_checkable
class Compiled(Protocol):
    """A jitted function: call it, or lower it for devices that are elsewhere."""

    def lower(self, *args: Any) -> Any:
        """As ``jax.jit`` has it."""
        ...

    def __call__(self, *args: Any) -> Any:
        """Run it."""
        ...


class Program(NamedTuple):
    """What a run compiles."""

    init: Callable[[Array], TrainState]
    """A key -> the state before the first step, each leaf made where it lives."""
    step: Compiled
    """(state, batch, limits = none) -> state, metrics; the state given is donated."""
    state: TrainState
    """Abstract leaves: shape, dtype, sharding."""
    batch: Batch
    """Abstract leaves."""
    placed: Placed

    @property
    def limits(self) -> jax.ShapeDtypeStruct:
        """The step's optional limits, abstract: a number for each metric that judges it."""
        return jax.ShapeDtypeStruct((len(JUDGED),), "float32", sharding=self.placed.replicated)


def build_program(
    placed: Placed,
    objective: Objective,
    optimizer: Optimizer,
    training: Training,
    *,
    offload_optimizer: bool = False,
) -> Program:
    """The program of a run; allocates nothing and compiles nothing.

    Args:
        placed: the model on its mesh.
        objective: what is learned.
        optimizer: how.
        training: how much.
        offload_optimizer: keep the optimizer's state in the host's memory between updates.

    Raises:
        ShardingError: rows that do not divide over devices and microbatches.
    """
    batch = placed.batch(training.sequences, training.length)
    _check_microbatches(training, row_shards(placed.mesh))
    transformation = optimizer.build(training.steps, placed.model.leaves)
    places = jax.tree.map(lambda x: x.sharding, placed.params)
    inner = state_shardings(transformation, placed.params, places, placed.replicated)
    one: Any = placed.replicated
    kept = inner
    if offload_optimizer:
        kept = jax.tree.map(lambda s: s if s == one else s.with_memory_kind(HOST_MEMORY), inner)
    where = TrainState(one, places, {}, kept, one)

    def init(key: Array) -> TrainState:
        of_weights, of_run = jax.random.split(key)
        params = placed.model.init(of_weights)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, {}, transformation.init(params), of_run)

    rate = optimizer.learning_rate(training.steps)
    step = train_step(placed, objective, transformation, rate, training.microbatches)
    fetched = step if not offload_optimizer else _fetching(step, inner)
    shapes = jax.eval_shape(init, jax.random.key(0))
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
    )
    jitted_init = jax.jit(init, out_shardings=where)
    jitted_step = jax.jit(
        fetched, donate_argnums=0, out_shardings=(where, placed.replicated), keep_unused=True
    )
    return Program(jitted_init, jitted_step, state, batch, placed)


def _fetching(step: Step, places: Any) -> Step:
    """The step, on a state whose optimizer's part must first come to the device."""

    def with_fetch(
        state: TrainState, batch: Batch, limits: Array | None = None, /
    ) -> tuple[TrainState, Metrics]:
        fetched = state._replace(optimizer=jax.device_put(state.optimizer, places))
        return step(fetched, batch, limits)

    return with_fetch


def _check_microbatches(training: Training, shards: int) -> None:
    each = training.sequences // shards
    if each % training.microbatches:
        fits = [str(m) for m in range(1, each + 1) if each % m == 0]
        raise ShardingError(
            f"training: {training.sequences} sequences over {shards} devices are {each} rows "
            f"each, which cannot be cut into {training.microbatches} microbatches. "
            f"Use microbatches of {', '.join(fits)}, or more sequences."
        )


def parameter_count(program: Program) -> int:
    """Trainable and frozen parameters."""
    trees = (program.state.trainable, program.state.frozen)
    return sum(x.size for x in jax.tree.leaves(trees))
