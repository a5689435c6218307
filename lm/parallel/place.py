"""Host rows -> global arrays."""

from typing import Any, cast

import jax
import numpy as np
from jax.sharding import NamedSharding


def own_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Which rows of the global batch this process feeds, ascending."""
    mine: set[int] = set()
    for index in sharding.addressable_devices_indices_map((rows,)).values():
        part = slice(None) if index is None else index[0]
        mine.update(range(*part.indices(rows)))
    return np.asarray(sorted(mine), dtype=np.int64)


def to_global(batch: Any, abstract: Any) -> Any:
    """Arrays as the program wants them, from this process's rows of them."""

    def one(local: np.ndarray, want: jax.ShapeDtypeStruct) -> jax.Array:
        sharding = cast(NamedSharding, want.sharding)
        exact = np.ascontiguousarray(local, dtype=want.dtype)
        # With several processes JAX takes this for an implicit transfer; it is meant.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_process_local_data(sharding, exact, want.shape)

    return jax.tree.map(one, batch, abstract)
