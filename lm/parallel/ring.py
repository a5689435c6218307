"""Gathering and scattering from neighbour to neighbour, half of it each way around.

A TPU's compiler runs a permutation beside compute on every version.  A whole all-gather it runs
so on v5e alone, and a reduce-scatter on none: the step waits for them.  The bytes that a device
sends are the same.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def gather(x: Array, axis: str) -> Array:
    """Every device's [n, ...] along a mesh axis, in order: [devices * n, ...]."""
    ways = lax.axis_size(axis)
    found = {0: x}
    from_left = from_right = x
    for step in range(1, ways // 2 + 1):
        from_left = _moved(from_left, axis, ways, 1)
        found[-step % ways] = from_left
        if step not in found:
            from_right = _moved(from_right, axis, ways, -1)
            found[step] = from_right
    mine_first = jnp.concatenate([found[n] for n in range(ways)])
    return jnp.roll(mine_first, lax.axis_index(axis) * len(x), axis=0)


def scatter(x: Array, axis: str) -> Array:
    """Sum [devices * n, ...] over a mesh axis; each device keeps its own [n, ...]."""
    ways = lax.axis_size(axis)
    rows, here = len(x) // ways, lax.axis_index(axis)

    def piece(away: int) -> Array:
        return lax.dynamic_slice_in_dim(x, (here + away) % ways * rows, rows, 0)

    right = ways // 2
    total = piece(0)
    for first, towards in ((right, 1), (right + 1 - ways, -1)):
        if first == 0:
            continue
        # What is meant for the farthest sets out first, and collects from each it passes.
        moving = piece(first)
        for away in range(first - towards, 0, -towards):
            moving = _moved(moving, axis, ways, towards) + piece(away)
        total = total + _moved(moving, axis, ways, towards)
    return total


def _moved(x: Array, axis: str, ways: int, by: int) -> Array:
    return lax.ppermute(x, axis, [(n, (n + by) % ways) for n in range(ways)])
