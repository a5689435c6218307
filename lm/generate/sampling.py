"""Choosing the next token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from lm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How tokens are drawn; the limits act in the order temperature, ``top_k``, ``top_p``."""

    temperature: float = 1.0
    """Logits are divided by it; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only so many of the likeliest tokens (Fan 2018, arXiv:1805.04833); None: all."""
    top_p: float | None = None
    """Only the fewest likeliest tokens that together have this probability (Holtzman 2019,
    arXiv:1904.09751); None: all."""

    def __post_init__(self) -> None:
        """Each value has a meaning.

        Raises:
            ConfigError: one that has none.
        """
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature {self.temperature}: use 0 (always the likeliest token) or more; "
                "1 is the model's own distribution."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k {self.top_k}: keep at least 1 token, or leave it out.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p}: a probability above 0 and up to 1.")


GREEDY = Sampler(temperature=0.0)


def sample(
    logits_SV: Float[Array, "S V"], keys_S: Key[Array, " S"], sampler: Sampler
) -> Int32[Array, " S"]:
    """One id for each row, each drawn with its own key: rows do not know of each other.

    Args:
        logits_SV: scores; minus infinity where a token is out of the question.
        keys_S: a key for each row; unread where the temperature is 0.
        sampler: how to draw.
    """
    if sampler.temperature == 0:
        return jnp.argmax(logits_SV, axis=-1).astype(jnp.int32)
    V = logits_SV.shape[-1]
    scores = logits_SV.astype(jnp.float32) / sampler.temperature
    if sampler.top_k is None and sampler.top_p is None:
        return jax.vmap(jax.random.categorical)(keys_S, scores).astype(jnp.int32)
    # Ranked, the tokens kept are those in front.
    scores, ids = jax.lax.top_k(scores, min(sampler.top_k or V, V))
    if sampler.top_p is not None:
        shares = jax.nn.softmax(scores, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        scores = jnp.where(before < sampler.top_p, scores, -jnp.inf)
    chosen = jax.vmap(jax.random.categorical)(keys_S, scores)
    return jnp.take_along_axis(ids, chosen[:, None], axis=-1)[:, 0].astype(jnp.int32)
