"""Runs for the verbs to work on, made without training: their weights are noise."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import assemble
from lm.checkpoint.layout import write_json
from lm.checkpoint.record import make_record
from lm.checkpoint.saving import Saving
from lm.checkpoint.store import open_store
from lm.cli.config import load_experiment
from lm.config import to_plain
from lm.experiment import Experiment
from lm.train.program import parameter_count

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "smoke" / "tiny.py"


def save_run(experiment: Experiment, folder: Path) -> Path:
    """A run with one checkpoint, at step 1."""
    program = assemble.program(experiment, jax.devices())
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), leaf.sharding)
        values = rng.normal(scale=0.1, size=leaf.shape).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    folder.mkdir(parents=True)
    write_json(folder / "experiment.json", to_plain(experiment))
    with open_store(folder / "checkpoints", Saving()) as store:
        store.save(
            1,
            jax.tree.map(fill, program.state),
            data={"position": 8, "skipped": []},
            experiment=to_plain(experiment),
            record=make_record(step=1, tokens=512, parameters=parameter_count(program)),
            tokenizer=experiment.tokenizer.build(),
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def _compiled_afresh():
    """No test reads or writes the user's own cache of compiled programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    """``tiny``: the run of configs/smoke/tiny.py; ``capped``: one that no other format has."""
    folder = tmp_path_factory.mktemp("made")
    tiny = load_experiment(str(TINY))
    capped = replace(tiny, name="capped", model=replace(tiny.model, logit_soft_cap=30.0))
    return {e.name: save_run(e, folder / e.name) for e in (tiny, capped)}


@pytest.fixture
def bring(made, tmp_path) -> Callable[[str], Path]:
    """Copies a run to ``runs/NAME`` of the test's own folder."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(made[name], tmp_path / "runs" / name))

    return copy
