"""Host memory over many saves."""

import gc
import os
from pathlib import Path

import pytest

from lm.checkpoint.saving import Saving
from lm.checkpoint.store import open_store
from tests.checkpoint.states import save, spread

MIB = 96


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.faults
@pytest.mark.slow  # writes 6 GiB
def test_host_memory_stays_within_two_percent_over_fifty_saves(tmp_path):
    import jax

    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    draw = jax.jit(lambda: jax.random.normal(jax.random.key(0), (MIB * 32, 1024)))
    state = step(spread({f"w{part}": draw() for part in range(8)}))
    sizes = []
    with open_store(tmp_path / "checkpoints", Saving(keep=1)) as store:
        for number in range(60):
            save(store, number, state)
            state = jax.block_until_ready(step(state))
            store.wait()
            gc.collect()
            sizes.append(resident())
    kept = sizes[10:]  # the first ones compile, and fill the allocator's pools
    told = [round(size / 2**20) for size in sizes]
    first, last = sorted(kept[:10])[5], sorted(kept[-10:])[5]
    print("MiB after each save:", told)
    assert abs(last - first) <= 0.02 * first, told
    assert max(kept) - min(kept) <= 0.25 * MIB * 2**20, told
