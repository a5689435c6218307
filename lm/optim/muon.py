"""Muon (Jordan 2024; at scale: Liu 2025, arXiv:2502.16982)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from lm.batch import Leaf
from lm.errors import ConfigError
from lm.optim.chain import chain, check_decay_and_clip, check_rates
from lm.optim.masks import kind_mask
from lm.optim.optimizer import Leaves
from lm.optim.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Orthogonalised momentum for matrices, Adam for everything else, at one learning rate.

    A matrix's update is scaled to the root mean square that Adam's commonly has (Liu 2025,
    section 2.2), so that AdamW's learning rates and decay carry over.  Layers and experts are
    orthogonalised apart.
    """

    schedule: Schedule
    """Learning rate over the run."""
    momentum: float = 0.95
    """Averaging rate of a matrix's gradient (with Nesterov's step ahead)."""
    update_size: float = 0.2
    """Root mean square of a matrix's update, before the learning rate."""
    b1: float = 0.9
    """Adam's averaging rate of the gradient, for what is no matrix."""
    b2: float = 0.95
    """Adam's averaging rate of its square."""
    decay: float = 0.1
    """Weight decay of matrices, multiplied by the learning rate."""
    decay_tables: bool = False
    """Whether token tables decay too; norms, biases and positions never do."""
    clip: float | None = 1.0
    """Largest norm of the whole gradient; None: never clipped."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the first moments."""

    def __post_init__(self):
        check_rates(momentum=self.momentum, b1=self.b1, b2=self.b2)
        check_decay_and_clip(self.decay, self.clip)
        if not self.update_size > 0:
            raise ConfigError(f"update_size={self.update_size}: must be positive.")

    def build(self, total_steps: int, leaves: Leaves) -> optax.GradientTransformation:
        """The transformation for a run of ``total_steps`` updates of parameters like ``leaves``.

        Raises:
            ConfigError: the schedule does not fit the run.
        """
        matrices = kind_mask(leaves, {"matrix"})
        others = jax.tree.map(lambda matrix: not matrix, matrices)
        muon = optax.chain(
            scale_by_muon(
                beta=self.momentum,
                mu_dtype=self.state_dtype,
                weight_dimension_numbers=_for_each(leaves, matrix_dimensions),
            ),
            optax.stateless(self._resize(leaves)),
        )
        adam = optax.scale_by_adam(self.b1, self.b2, mu_dtype=self.state_dtype)
        return chain(
            optax.chain(optax.masked(muon, matrices), optax.masked(adam, others)),
            self.learning_rate(total_steps),
            leaves,
            decay=self.decay,
            decay_tables=self.decay_tables,
            clip=self.clip,
        )

    def learning_rate(self, total_steps: int) -> optax.Schedule:
        """The learning rate by the number of the update, counted from 0."""
        return self.schedule.build(total_steps)

    def _resize(self, leaves: Leaves) -> Callable[[Any, Any], Any]:
        """An orthogonal m x n matrix has a root mean square of 1 / sqrt(max(m, n))."""

        def factor(leaf: Leaf, array: jax.Array) -> float:
            return self.update_size * math.sqrt(max(leaf.fan_in, leaf.fan_out))

        def resize(updates: Any, params: Any) -> Any:
            return jax.tree.map(lambda u, f: u * f, updates, _for_each(leaves, factor)(updates))

        return resize


def matrix_dimensions(leaf: Leaf, array: jax.Array) -> MuonDimensionNumbers:
    """Which dimensions of a parameter are a matrix's inputs and which its outputs.

    Layers and experts are matrices of their own; of the other dimensions the first that multiply
    to ``fan_in`` are the inputs.

    Raises:
        ConfigError: no such split.
    """
    own = [i for i, axis in enumerate(leaf.axes) if axis not in ("layers", "expert")]
    for cut in range(1, len(own)):
        inputs, outputs = own[:cut], own[cut:]
        if math.prod(array.shape[i] for i in inputs) == leaf.fan_in:
            return MuonDimensionNumbers(tuple(inputs), tuple(outputs))
    raise ConfigError(
        f"optimizer: Muon needs matrices; a parameter of shape {array.shape} with axes "
        f"{leaf.axes} and fan-in {leaf.fan_in} is not one of inputs x outputs. Use AdamW."
    )


def _for_each(leaves: Leaves, function: Callable[[Leaf, Any], Any]) -> Callable[[Any], Any]:
    """``function`` of each leaf and array of a tree from which ``optax.masked`` took some."""

    def each(leaf: Leaf, array: Any) -> Any:
        return array if isinstance(array, optax.MaskedNode) else function(leaf, array)

    return lambda tree: jax.tree.map(each, leaves, tree)
