"""Next-token prediction."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lm.batch import Batch, Example, LogitsFn, Loss, Output
from lm.errors import ConfigError
from lm.ops.cross_entropy import summed_cross_entropy


@dataclass(frozen=True, kw_only=True)
class CausalLm:
    """Next-token prediction over packed documents."""

    z_loss: float = 0.0
    """Weight of the squared log-normaliser (Chowdhery 2022, arXiv:2204.02311)."""

    def __post_init__(self) -> None:
        """The weight is not negative.

        Raises:
            ConfigError: it is.
        """
        if self.z_loss < 0:
            raise ConfigError(f"objective: z_loss {self.z_loss} is negative. Use 0 or more.")

    def prepare(
        self,
        ids: Int[np.ndarray, " window"],
        segments: Int[np.ndarray, " window"],
        rng: np.random.Generator,
    ) -> Example:
        """Predict each token from those before it; nothing here is random."""
        return self.prepare_rows(ids, segments)

    def prepare_rows(self, ids: np.ndarray, segments: np.ndarray) -> Example:
        """The same for many rows at once ([..., T + 1]); the loader's quick way."""
        inside = segments[..., :-1]
        # A document never predicts the next one's first token, and padding is never scored.
        scored = (inside == segments[..., 1:]) & (inside != 0)
        return Example(ids[..., :-1], inside, ids[..., 1:], scored.astype(np.float32))

    def loss(self, logits: LogitsFn, output: Output, batch: Batch) -> Loss:
        """Summed negative log likelihood (nats) plus z-loss."""
        sums = summed_cross_entropy(
            logits, output.hidden, batch.targets, batch.weights, self.z_loss
        )
        metrics = {"nll": sums.nll, "accuracy": sums.correct}
        return Loss(sums.total, batch.weights.sum(), metrics)
