"""A step computed twice: a chip that adds wrongly now and then is found by its own disagreement.

Faults that come and go are found so; one that computes the same wrong number twice is not.  The
state must outlive the first computation, which takes a second copy of it.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lm.batch import Batch
from lm.train.state import TrainState
from lm.train.step import Metrics

UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class CorruptionError(RuntimeError):
    """The same step of the same state gave two results: a fault of the hardware, no mistake."""


class Recompute:
    """Takes a step twice, on a copy and on the state itself, and compares every bit.

    What is compared is each device's own part of loss, norm and state, copies of the same shard
    among them, before anything of it is summed over devices.
    """

    def __init__(self, step: Callable[..., tuple[TrainState, Metrics]], mesh: Any) -> None:
        """``step`` is compiled, and donates its state."""
        self.step = step
        self.mesh = mesh
        self.copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
        self.compare = jax.jit(self._differing, static_argnums=0)

    def __call__(
        self, number: int, state: TrainState, batch: Batch, *limits: Array
    ) -> tuple[TrainState, Metrics]:
        """Step ``number``.

        Raises:
            CorruptionError: the two results differ; says where.
        """
        twin = jax.block_until_ready(self.copy(state))
        first = jax.block_until_ready(self.step(twin, batch, *limits))
        second = jax.block_until_ready(self.step(state, batch, *limits))
        flat = jax.tree_util.tree_leaves_with_path(first)
        pairs = (_plain(jax.tree.leaves(first)), _plain(jax.tree.leaves(second)))
        specs = tuple(cast(NamedSharding, x.sharding).spec for x in pairs[0])
        counts = np.asarray(jax.device_get(self.compare(specs, *pairs).addressable_data(0)))
        if counts.any():
            names = [jax.tree_util.keystr(path[1:], simple=True, separator=".") for path, _ in flat]
            raise CorruptionError(_told(number, counts, names, self.mesh))
        return second

    def _differing(self, specs: tuple[P, ...], first: list[Array], second: list[Array]) -> Array:
        """Differing elements, by device (in the mesh's order) and leaf; the same everywhere."""
        axes = self.mesh.axis_names

        def of_device(ours: list[Array], theirs: list[Array]) -> Array:
            counts = [
                jnp.sum(_bits(a) != _bits(b), dtype=jnp.int32)
                for a, b in zip(ours, theirs, strict=True)
            ]
            return lax.all_gather(jnp.stack(counts), axes)

        spread = jax.shard_map(
            of_device,
            mesh=self.mesh,
            in_specs=([*specs], [*specs]),
            out_specs=P(),
            check_vma=False,
        )
        return spread(first, second)


def _plain(leaves: list[Array]) -> list[Array]:
    keyed = jax.dtypes.prng_key
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, keyed) else x for x in leaves]


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, UINTS[x.dtype.itemsize])


def _told(number: int, counts: np.ndarray, names: list[str], mesh: Any) -> str:
    where = [
        f"device {device.id} (process {device.process_index}): "
        + ", ".join(f"{names[i]} ({row[i]} elements)" for i in np.flatnonzero(row)[:4])
        + (f" and {np.count_nonzero(row) - 4} more leaves" if np.count_nonzero(row) > 4 else "")
        for device, row in zip(mesh.devices.flat, counts, strict=True)
        if row.any()
    ]
    more = f"; and {len(where) - 8} more devices" if len(where) > 8 else ""
    return (
        f"step {number} was computed twice from the same state and batch, with different results "
        f"on {len(where)} of {len(counts)} devices: {'; '.join(where[:8])}{more}. One of them, or "
        "one that they had numbers from, computes wrongly. Test these machines, leave the faulty "
        "one out, and start again: the checkpoints are as they were."
    )
