"""What all optimizers share around their own direction: clip, decay, schedule, sign."""

import optax

from lm.errors import ConfigError
from lm.optim.masks import decay_mask
from lm.optim.optimizer import Leaves


def chain(
    direction: optax.GradientTransformation,
    schedule: optax.Schedule,
    leaves: Leaves,
    *,
    decay: float,
    decay_tables: bool,
    clip: float | None,
) -> optax.GradientTransformation:
    """Clip the gradient, turn it into a direction, add decay, and step against it.

    Clipping is by the norm of the whole gradient.  The decay is decoupled from the direction
    and multiplied by the learning rate (Loshchilov 2017, arXiv:1711.05101, as PyTorch and Optax
    have it): p <- p - lr * (direction + decay * p).
    """
    parts = [] if clip is None else [optax.clip_by_global_norm(clip)]
    parts.append(direction)
    if decay:
        mask = decay_mask(leaves, tables=decay_tables)
        parts.append(optax.add_decayed_weights(decay, mask))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


def check_rates(**rates: float) -> None:
    """Refuse an averaging rate outside [0, 1).

    Raises:
        ConfigError: the rate and its value.
    """
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"{name}={rate}: an averaging rate must be at least 0 and below 1.")


def check_decay_and_clip(decay: float, clip: float | None) -> None:
    """Refuse a negative decay and a clipping norm that is not positive.

    Raises:
        ConfigError: the field and its value.
    """
    if not decay >= 0:
        raise ConfigError(f"decay={decay}: weight decay cannot be negative.")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip={clip}: a gradient norm to clip to is positive; None for none.")
