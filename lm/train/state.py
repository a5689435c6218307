"""What a run carries from step to step."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int

from lm.batch import Params


class TrainState(NamedTuple):
    """Everything a step reads besides its batch, and all that it changes."""

    step: Int[Array, ""]
    """Steps made so far; the update of one with bad numbers was left out."""
    trainable: Params
    """Master weights that the optimizer changes, float32."""
    frozen: Params
    """Weights that it does not; empty in pretraining."""
    optimizer: Any
    key: Array
    """Key of the run's randomness; step n uses ``fold_in(key, n)``."""
