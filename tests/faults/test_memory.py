"""Host memory over many saves."""

import json

import numpy as np
import pytest

from tests.faults.battery import Bench

WARM_UP, SAVES = 20, 50


@pytest.mark.slow  # some seventy saves
@pytest.mark.faults
def test_the_memory_of_a_run_is_flat_within_two_percent_over_fifty_saves(compiled, tmp_path):
    """A copy of the state leaked by each save would be a tenth more at the end."""
    steps = ("--training.steps", str(WARM_UP + SAVES), "--evaluation.every", "1000")
    saving = ("--saving.every", "1", "--saving.keep", "2")
    bench = Bench(folder=tmp_path, compiled=compiled, options=(*steps, *saving))
    bench.finish("run", options=("--model.width", "256"))
    lines = (bench.notes("run") / "memory-0").read_text().splitlines()
    used = np.asarray([json.loads(line)["bytes"] for line in lines][WARM_UP:])
    assert len(used) == SAVES
    state = bench.run("run") / "checkpoints" / str(WARM_UP + SAVES) / "state"
    size = sum(file.stat().st_size for file in state.rglob("*") if file.is_file())
    assert SAVES * size > 0.1 * used[0]
    tens = np.median(used.reshape(-1, 10), axis=1)  # what is free for a moment is no leak
    assert np.abs(tens / np.median(used) - 1).max() <= 0.02, used // 2**20
