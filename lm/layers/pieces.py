"""A layer computed in pieces of its inner width, one after another, to need less memory.

A piece is the same layer, narrower: its weights are gathered for it alone, its inner values are
computed again in the backward pass, and its gradients are made before the next piece begins.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm.batch import Leaf, Params


def cut(params: Params, leaves: Params, axis: str, count: int) -> Params:
    """``count`` narrower trees, stacked along a leading dimension.

    A piece takes every ``count``-th row, so that an axis which the compiler splits over devices is
    split in the same way within each piece.  What has no such axis goes to the first piece, and is
    0 in the others.
    """

    def one(x: Array, leaf: Leaf) -> Array:
        if axis not in leaf.axes:
            return jnp.stack([x, *[jnp.zeros_like(x)] * (count - 1)])
        at = leaf.axes.index(axis)
        rows = x.reshape(*x.shape[:at], x.shape[at] // count, count, *x.shape[at + 1 :])
        return jnp.moveaxis(rows, at + 1, 0)

    return jax.tree.map(one, params, leaves)


def ids(index: Array, size: int, count: int) -> Array:
    """Which rows of the whole the ``size`` rows of piece ``index`` are."""
    return jnp.arange(size) * count + index


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed(
    function: Callable[[Params, Array], Array],
    gather: Callable[[Params], Params],
    pieces: Sequence[Params],
    x: Array,
) -> Array:
    """The sum of ``function(gather(piece), x)``; the backward pass takes one piece at a time.

    Left to itself the compiler makes the gradients of weights when nothing else is to be done, and
    all that they are made of waits for it in memory.

    Args:
        function: a narrow layer; what it makes is computed again in the backward pass.
        gather: makes the weights of a piece whole.
        pieces: the weights of each, as they are stored.
        x: what every piece reads.
    """
    return sum((function(gather(piece), x) for piece in pieces), jnp.zeros_like(x))


def _summed_backward(
    function: Callable[[Params, Array], Array],
    gather: Callable[[Params], Params],
    saved: tuple[Sequence[Params], Array],
    dy: Array,
) -> tuple[Sequence[Params], Array]:
    pieces, x = saved
    dx, made = jnp.zeros_like(x), None
    gradients: list[Params] = []
    scatters: list[Callable[[Params], tuple[Params]]] = []
    for piece in pieces:
        whole, scatter = jax.vjp(gather, piece)  # not held back: it may be gathered ahead
        x, dy, dx, made = jax.lax.optimization_barrier((x, dy, dx, made))
        if scatters:
            gradients.append(scatters[-1](made)[0])
            x, dy = _once_made(gradients[-1], (x, dy))
        scatters.append(scatter)
        made, more = jax.vjp(function, whole, x)[1](dy)
        dx = dx + more
    dx, made = jax.lax.optimization_barrier((dx, made))
    gradients.append(scatters[-1](made)[0])
    return gradients, dx


def _once_made(done: Params, values: tuple[Array, ...]) -> tuple[Array, ...]:
    """The values again, which no compiler knows before it has ``done``.

    A barrier is gone by the time a TPU's compiler orders what it runs, and it would then put off
    every reduce-scatter to the end, with the gradients of all pieces whole in memory.
    """
    first = jax.tree.leaves(done)[0]
    never = jax.lax.index_in_dim(first.reshape(-1), 0, keepdims=False) > jnp.inf
    return tuple(jnp.where(never, jnp.zeros_like(v), v) for v in values)


summed.defvjp(lambda f, g, pieces, x: (summed(f, g, pieces, x), (pieces, x)), _summed_backward)
