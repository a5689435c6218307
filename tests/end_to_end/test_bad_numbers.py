"""A run with bad numbers, through the command line, on eight devices.

What goes wrong is planted in the loader: a sample with a weight that is infinite gives a loss that
is no number, samples of noise give a spike.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.cli.main import main
from lm.config import from_plain
from lm.data.loader import Loader
from lm.experiment import Experiment
from lm.train.guarded import Guarded
from tests.end_to_end.conftest import digests, metrics

CONFIG = '''"""A small model on synthetic tokens."""

from lm.checkpoint.saving import Saving
from lm.data.mixture import Mixture, Weighted
from lm.data.synthetic import Synthetic
from lm.experiment import Evaluation, Experiment
from lm.models.gpt2 import gpt2
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.parallel.mesh import Mesh, Parallel
from lm.tokenizers.bytes import Bytes
from lm.track.tracker import Trackers
from lm.train.guard import Guard
from lm.train.step import Training


def experiment() -> Experiment:
    return Experiment(
        name="run",
        model=gpt2(320, width=32, blocks=1, num_heads=4, length=16, dropout=0.1),
        tokenizer=Bytes(),
        data=Mixture(sources=(Weighted(source=Synthetic(vocab_size=259)),)),
        training=Training(steps=24, sequences=8, length=16, microbatches=2),
        optimizer=AdamW(schedule=Cosine(peak=3e-3, warmup=4)),
        parallel=Parallel(mesh=Mesh(data=2, fsdp=2)),
        evaluation=Evaluation(evaluators=()),
        saving=Saving(every=4, keep=100),
        tracking=Trackers(tensorboard=False),
        guard=Guard(window=8, stop_after_skips=3),
    )
'''
SKIPS = "train/skips"


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """Runs ``lm train``; gives the exit code and what was said."""
    monkeypatch.setattr(jax, "devices", lambda *_, kept=jax.devices()[:4]: kept)
    config = tmp_path / "config.py"
    config.write_text(CONFIG)

    def call(name: str, *words: str) -> tuple[int, str]:
        capfd.readouterr()
        given = [str(config), "--runs", str(tmp_path / "runs"), "--name", name, *words]
        code = main(["train", *given])
        return code, "".join(capfd.readouterr())

    return call


@pytest.fixture
def bad(monkeypatch):
    """Makes samples bad: ``bad({40: "infinite", 48: "noise"})``."""
    right = Loader.batch

    def plant(samples: dict[int, str]) -> None:
        def batch(self, position):
            made = right(self, position)
            for row, number in zip(made.rows, self.numbers(position)[self._rows], strict=True):
                kind = samples.get(int(number))
                at = int(np.flatnonzero(made.rows == row)[0])
                if kind == "infinite":
                    made.weights[at, 3] = np.inf
                elif kind == "noise":
                    rng = np.random.default_rng(int(number))
                    made.targets[at] = rng.integers(0, 320, made.targets.shape[1])
                    made.weights[at] *= 1e4
            return made

        monkeypatch.setattr(Loader, "batch", batch)

    return plant


def spike(step: int) -> dict[int, str]:
    return {(step - 1) * 8 + row: "noise" for row in range(8)}


def value(run: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[f"train/{name}"] for line in metrics(run)}


def test_a_bad_batch_is_skipped_counted_and_written_out_and_the_rest_is_trained(
    train, bad, tmp_path
):
    bad({35: "infinite", 63: "infinite"})
    code, said = train("run")
    run = tmp_path / "runs" / "run"
    assert code == 0, said
    assert [step for step, skipped in value(run, "skipped").items() if skipped] == [5, 8]
    assert value(run, "skips")[4] == 0
    assert value(run, "skips")[24] == 2
    assert "step 5: loss is nan" in said
    assert "2 skipped updates" in said
    assert sorted(digests(run)) == [4, 8, 12, 16, 20, 24]  # one bad batch is no reason not to save
    before, after = digests(run)[4], digests(run)[8]
    assert before != after
    for step, position in ((5, 32), (8, 56)):
        told = json.loads((run / "bad_batches" / f"{step}.json").read_text())
        origins = loader_of(run).origins(position)
        assert told["step"] == step
        assert told["skipped"] is True
        assert [row["source"] for row in told["rows"]] == [o.source for o in origins]
        assert [[d["id"] for d in row["documents"]] for row in told["rows"]] == [
            list(o.names) for o in origins
        ]


def loader_of(run: Path) -> Loader:

    e = from_plain(Experiment, json.loads((run / "experiment.json").read_text()))
    return Loader(blend=e.data.build(e.training.length), objective=e.objective, sequences=8, seed=0)
