"""Cross entropy over a large vocabulary, in pieces of tokens.

The logits of all tokens are the largest array of a training step.  Here a piece of tokens at a
time is taken to its logits, its loss and, in the same visit, its gradient: nothing is recomputed
and no more than ``LOGITS_GIB`` of logits live at once.  Where all of them fit in that, there is
one piece and no loop.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.batch import LogitsFn, Params, Pieced

LOGITS_GIB = 0.25
"""Size of the float32 logits of one piece, in GiB."""


class CrossEntropy(NamedTuple):
    """Weighted sums over tokens; only ``total`` has a gradient."""

    total: Float[Array, ""]
    """Negative log likelihood plus z-loss."""
    nll: Float[Array, ""]
    correct: Float[Array, ""]
    """Weight of the tokens whose target has the highest logit."""


def summed_cross_entropy(
    logits: LogitsFn,
    hidden_BTD: Float[Array, "B T D"],
    targets_BT: Int[Array, "B T"],
    weights_BT: Float[Array, "B T"],
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Sum of ``weights * (nll + z_loss * log_z**2)`` (z-loss: Chowdhery 2022, arXiv:2204.02311).

    Logits and sums are float32.  Differentiable in the hidden states and in whatever ``logits``
    closes over.
    """
    D = hidden_BTD.shape[-1]
    if isinstance(logits, Pieced):
        flat = (hidden_BTD.reshape(-1, D), targets_BT.reshape(-1), weights_BT.reshape(-1))
        return _by_vocabulary(logits, z_loss, *flat)
    hidden, targets, weights = _pieces(
        logits, hidden_BTD.reshape(-1, D), targets_BT.reshape(-1), weights_BT.reshape(-1)
    )
    pure, constants = jax.closure_convert(logits, hidden[0])
    return _summed(pure, z_loss, hidden, targets, weights, tuple(constants))


def token_cross_entropy(
    logits: LogitsFn, hidden_BTD: Float[Array, "B T D"], targets_BT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """For each token: its negative log likelihood in nats, and 1.0 where it has the highest logit.

    For evaluation: no gradient is kept.
    """
    B, T, D = hidden_BTD.shape
    flat = hidden_BTD.reshape(-1, D)
    hidden, targets, _ = _pieces(logits, flat, targets_BT.reshape(-1), jnp.ones(B * T, jnp.float32))

    def piece(_: None, xs: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        scores = logits(xs[0]).astype(jnp.float32)
        log_z = jax.nn.logsumexp(scores, axis=-1)
        picked = _picked(scores, xs[1])
        return None, (log_z - picked, (picked >= scores.max(-1)).astype(jnp.float32))

    _, (nll, correct) = jax.lax.scan(piece, None, (hidden, targets))
    return nll.reshape(-1)[: B * T].reshape(B, T), correct.reshape(-1)[: B * T].reshape(B, T)


def _pieces(
    logits: LogitsFn, hidden: Array, targets: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """Cut the tokens into equal pieces, padded with weight 0: [pieces, tokens, ...]."""
    n, V = len(hidden), jax.eval_shape(logits, hidden[:1]).shape[-1]
    count = -(-n * V * 4 // int(LOGITS_GIB * 2**30))
    size = -(-n // count)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, [(0, count * size - n)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(count, size, *x.shape[1:])

    return cut(hidden), cut(targets), cut(weights)


def _picked(scores: Float[Array, "n V"], targets: Int[Array, " n"]) -> Float[Array, " n"]:
    """The target's logit, by comparison: a lookup in a sharded vocabulary would gather it."""
    return jnp.where(_one_hot(scores, targets), scores, 0.0).sum(-1)


def _one_hot(scores: Float[Array, "n V"], targets: Int[Array, " n"]) -> Array:
    return jnp.arange(scores.shape[-1])[None, :] == targets[:, None]


Pure = Callable[..., Float[Array, "n V"]]


@jax.custom_vjp
def _scaled(total: Array, gradients: tuple[Array, ...], given: tuple[Array, ...]) -> Array:
    """``total``, whose gradient in ``given`` is known already to be ``gradients``."""
    return total


_scaled.defvjp(
    lambda total, gradients, given: (total, gradients),
    lambda gradients, g: (
        None,
        None,
        jax.tree.map(lambda x: (x.astype(jnp.float32) * g).astype(x.dtype), gradients),
    ),
)


def _summed(
    pure: Pure,
    z_loss: float,
    hidden: Array,
    targets: Array,
    weights: Array,
    constants: tuple[Array, ...],
) -> CrossEntropy:
    def piece(carry: tuple[CrossEntropy, tuple[Array, ...]], xs: tuple[Array, Array, Array]):
        sums, d_constants = carry
        states, wanted, weight = xs
        scores, pull = jax.vjp(pure, states, *constants)
        exact = scores.astype(jnp.float32)
        highest = exact.max(-1, keepdims=True)
        powers = jnp.exp(exact - highest)
        norm = powers.sum(-1, keepdims=True)
        log_z = (jnp.log(norm) + highest)[:, 0]
        picked = _picked(exact, wanted)
        nll = ((log_z - picked) * weight).sum()
        total = nll + (z_loss * log_z**2 * weight).sum()
        pulled_up = weight * (1.0 + 2.0 * z_loss * log_z)
        d_scores = powers * (pulled_up[:, None] / norm)
        d_scores = d_scores - jnp.where(_one_hot(exact, wanted), weight[:, None], 0.0)
        d_states, *d_more = pull(d_scores.astype(scores.dtype))
        right = ((picked >= highest[:, 0]) * weight).sum()
        more = CrossEntropy(total, nll, right)
        d_constants = tuple(
            a + b.astype(jnp.float32) for a, b in zip(d_constants, d_more, strict=True)
        )
        return (jax.tree.map(jnp.add, sums, more), d_constants), d_states

    nothing = jnp.zeros((), jnp.float32)
    empty = tuple(jnp.zeros(c.shape, jnp.float32) for c in constants)
    hidden_in, constants_in = hidden, constants
    hidden, constants = jax.lax.stop_gradient((hidden, constants))
    start = (CrossEntropy(nothing, nothing, nothing), empty)
    if len(hidden) == 1:
        (sums, d_constants), d_states = piece(start, (hidden[0], targets[0], weights[0]))
        d_states = d_states[None]
    else:
        (sums, d_constants), d_states = jax.lax.scan(piece, start, (hidden, targets, weights))
    d_constants = tuple(d.astype(c.dtype) for d, c in zip(d_constants, constants, strict=True))
    total = _scaled(sums.total, (d_states, *d_constants), (hidden_in, *constants_in))
    return CrossEntropy(total, *jax.lax.stop_gradient((sums.nll, sums.correct)))


def _by_vocabulary(
    logits: Pieced,
    z_loss: float,
    hidden: Float[Array, "n D"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
) -> CrossEntropy:
    """The same in two visits of each piece of the vocabulary: normaliser, then gradients."""
    hidden_in, stored_in = hidden, logits.weights
    hidden, stored = jax.lax.stop_gradient((hidden, stored_in))
    indices = jnp.arange(len(jax.tree.leaves(stored)[0]))

    def chosen(index: Array) -> Array:
        return logits.ids(index)[None, :] == targets[:, None]

    def read(carry: tuple[Array, Array, Array], xs: tuple[Params, Array]):
        highest, norm, picked = carry
        scores = logits.part(xs[0], hidden).astype(jnp.float32)
        higher = jnp.maximum(highest, scores.max(-1))
        norm = norm * jnp.exp(highest - higher) + jnp.exp(scores - higher[:, None]).sum(-1)
        return (higher, norm, picked + jnp.where(chosen(xs[1]), scores, 0.0).sum(-1)), None

    blank = jnp.zeros(len(hidden), jnp.float32)
    start = (jnp.full_like(blank, -jnp.inf), blank, blank)
    (highest, norm, picked), _ = jax.lax.scan(read, start, (stored, indices))
    log_z = jnp.log(norm) + highest
    nll = ((log_z - picked) * weights).sum()
    total = nll + (z_loss * log_z**2 * weights).sum()
    pulled_up = weights * (1.0 + 2.0 * z_loss * log_z)

    def gradient(d_hidden: Array, xs: tuple[Params, Array]) -> tuple[Array, Params]:
        scores, pull = jax.vjp(logits.part, xs[0], hidden)
        d_scores = jnp.exp(scores.astype(jnp.float32) - log_z[:, None]) * pulled_up[:, None]
        d_scores = d_scores - jnp.where(chosen(xs[1]), weights[:, None], 0.0)
        d_stored, more = pull(d_scores.astype(scores.dtype))
        return d_hidden + more.astype(jnp.float32), d_stored

    d_hidden, d_stored = jax.lax.scan(
        gradient, jnp.zeros(hidden.shape, jnp.float32), (stored, indices)
    )
    gradients = (d_hidden.astype(hidden.dtype), d_stored)
    total = _scaled(total, gradients, (hidden_in, stored_in))
    right = ((picked >= highest) * weights).sum()
    return CrossEntropy(total, *jax.lax.stop_gradient((nll, right)))
