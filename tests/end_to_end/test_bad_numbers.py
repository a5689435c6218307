"""A run with bad numbers, through the command line, on four devices.

What goes wrong is planted in the loader: a sample with a weight that is infinite gives a loss that
is no number, samples whose every target is a token that nothing else holds give a spike.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.cli.main import main
from lm.config import from_plain
from lm.data.loader import Loader
from lm.experiment import Experiment
from tests.end_to_end.conftest import digests, finished, metrics, start, together

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
        optimizer=AdamW(schedule=Cosine(peak=1e-2, warmup=4)),
        parallel=Parallel(mesh=Mesh(data=2, fsdp=2)),
        evaluation=Evaluation(evaluators=()),
        saving=Saving(every=4, keep=100),
        tracking=Trackers(tensorboard=False),
        guard=Guard(window=16, stop_after_skips=3),
    )
'''
pytestmark = pytest.mark.slow  # every run compiles its step


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """Runs ``lm train``; gives the exit code and what was said."""
    four = jax.devices()[:4]
    monkeypatch.setattr(jax, "devices", lambda: four)
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
    """Makes samples bad: ``bad({40: "infinite", 48: "strange"})``."""
    right = Loader.batch

    def plant(samples: dict[int, str]) -> None:
        def batch(self, position):
            made = right(self, position)
            for row, number in zip(made.rows, self.numbers(position)[self._rows], strict=True):
                kind = samples.get(int(number))
                at = int(np.flatnonzero(made.rows == row)[0])
                if kind == "infinite":
                    made.weights[at, 3] = np.inf
                elif kind == "strange":
                    made.targets[at] = 300 + int(number) % 8
            return made

        monkeypatch.setattr(Loader, "batch", batch)

    return plant


def spike(step: int) -> dict[int, str]:
    return {(step - 1) * 8 + row: "strange" for row in range(8)}


def value(run: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[f"train/{name}"] for line in metrics(run)}


def loader_of(run: Path) -> Loader:

    e = from_plain(Experiment, json.loads((run / "experiment.json").read_text()))
    return Loader(blend=e.data.build(e.training.length), objective=e.objective, sequences=8, seed=0)


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
    assert re.search("step 5: .*loss is nan.*; its update was left out", said), said
    assert "2 skipped updates" in said
    assert sorted(digests(run)) == [4, 8, 12, 16, 20, 24]  # one bad batch is no reason not to save
    for step, position in ((5, 32), (8, 56)):
        told = json.loads((run / "bad_batches" / f"{step}.json").read_text())
        origins = loader_of(run).origins(position)
        assert told["step"] == step
        assert told["skipped"] is True
        assert [row["source"] for row in told["rows"]] == [o.source for o in origins]
        assert [[d["id"] for d in row["documents"]] for row in told["rows"]] == [
            list(o.names) for o in origins
        ]


def test_too_many_in_a_row_end_the_run_with_their_documents_written_out(train, bad, tmp_path):
    """Not one of the states that they leave behind is kept but as it was before them."""
    bad(dict.fromkeys(range(6 * 8, 24 * 8), "infinite"))
    code, said = train("run", "--saving.every", "2")
    run = tmp_path / "runs" / "run"
    assert code == 2
    assert "the 3 steps up to this one (guard.stop_after_skips)" in said
    assert "Traceback" not in said
    assert sorted(digests(run)) == [2, 4, 6]
    assert sorted(path.name for path in (run / "bad_batches").iterdir()) == [
        "7.json", "8.json", "9.json"
    ]  # fmt: skip
    assert list(value(run, "skips").items())[-1] == (9, 3)
    # The count goes on where the run does.
    code, said = train("run", "--guard.stop_after_skips", "5")
    assert code == 2
    assert list(value(run, "skips").items())[-1] == (11, 5)


def test_a_spike_is_told_and_nothing_is_left_out(train, bad, tmp_path):
    bad(spike(18))
    code, said = train("run")
    run = tmp_path / "runs" / "run"
    assert code == 0, said
    assert re.search("step 18: (loss|gradient_norm) .* is beyond ", said), said
    assert value(run, "spikes")[17] == 0
    assert value(run, "spikes")[18] == 1
    assert set(value(run, "skipped").values()) == {0.0}
    assert json.loads((run / "bad_batches" / "18.json").read_text())["skipped"] is False


def test_a_spike_that_is_to_be_skipped_leaves_its_own_update_out(train, bad, tmp_path):
    """And the run that was killed after it decides as the one that was not."""
    bad(spike(18))
    code, said = train("run", "--on-spike", "skip")
    run = tmp_path / "runs" / "run"
    assert code == 0, said
    assert [step for step, skipped in value(run, "skipped").items() if skipped] == [18]
    assert json.loads((run / "bad_batches" / "18.json").read_text())["skipped"] is True
    code, said = train("short", "--on-spike", "skip", "--stop-after", "0s")
    assert code == 0
    for _ in range(3):
        code, said = train("short", "--on-spike", "skip", "--stop-after", "0s")
    code, said = train("short", "--on-spike", "skip")
    assert "resuming at step 4" in said
    short = tmp_path / "runs" / "short"
    assert digests(short)[24] == digests(run)[24]
    assert metrics(short) == metrics(run)


def test_a_run_that_goes_back_ends_as_one_that_never_saw_the_data(
    train, bad, tmp_path, monkeypatch
):
    bad(spike(18))
    code, said = train("run", "--on-spike", "rollback")
    run, other = tmp_path / "runs" / "run", tmp_path / "runs" / "other"
    assert code == 0, said
    assert "back at step 16; samples 128 to 143 of the data are left out" in said
    data = json.loads((run / "checkpoints" / "24" / "data.json").read_text())
    assert data["position"] == 24 * 8
    assert data["skipped"] == [[128, 144]]
    numbers = Loader.numbers
    monkeypatch.setattr(
        Loader, "numbers", lambda self, at: numbers(replace(self, skipped=((128, 144),)), at)
    )
    # Steps that are computed twice change no bit either.
    assert train("other", "--guard.recompute_every", "5")[0] == 0
    assert digests(run) == digests(other)
    counts = ("train/spikes", "train/skips")
    seen = [
        [{k: v for k, v in line.items() if k not in counts} for line in metrics(which)]
        for which in (run, other)
    ]
    assert seen[0] == seen[1]
    assert value(run, "spikes")[24] == 1


def test_a_run_that_would_go_back_for_ever_ends(train, bad, tmp_path):
    bad({number: "strange" for step in (18, 20, 22) for number in spike(step)})
    code, said = train("run", "--on-spike", "rollback", "--guard.rollbacks", "1")
    assert code == 2
    assert "after the run went back 1 times (guard.rollbacks)" in said
    assert sorted(digests(tmp_path / "runs" / "run")) == [4, 8, 12, 16]


PLANTED = """
import sys

import numpy as np

from lm.cli.main import main
from lm.data.loader import Loader

right = Loader.batch


def batch(self, position):
    made = right(self, position)
    for at, number in enumerate(self.numbers(position)[self._rows].tolist()):
        if number == 75:
            made.weights[at, 3] = np.inf
        if 136 <= number < 144:
            made.targets[at] = 300 + number % 8
    return made


Loader.batch = batch
sys.exit(main(sys.argv[1:]))
"""
"""``lm`` with a bad sample in step 10 and a spike in step 18."""


@pytest.mark.multiprocess
def test_two_processes_skip_and_go_back_together(tmp_path):
    """One of them alone has the bad row; what they make is what one process makes."""
    config, script = tmp_path / "config.py", tmp_path / "planted.py"
    config.write_text(CONFIG)
    script.write_text(PLANTED)
    runs = tmp_path / "runs"
    words = ["train", config, "--runs", runs, "--on-spike", "rollback", "--name"]
    one = finished(start([*words, "one"], tmp_path, 4, program=[script]))
    both = together([*words, "two"], tmp_path, 2, 2, program=[script])
    for said in (one, both[0]):
        assert "step 10: " in said
        assert "back at step 16; samples 128 to 143" in said
    assert not (runs / "two" / "bad_batches" / "9.json").exists()
    for name in ("10.json", "18.json"):
        told = [
            json.loads((runs / run / "bad_batches" / name).read_text()) for run in ("one", "two")
        ]
        assert told[0]["rows"] == told[1]["rows"]
    for name in ("skipped", "skips", "spikes"):
        assert value(runs / "two", name) == value(runs / "one", name)
    assert value(runs / "two", "loss")[24] == pytest.approx(
        value(runs / "one", "loss")[24], rel=1e-5
    )
