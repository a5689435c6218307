import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm.cli.config import load_experiment
from lm.corpus.prepare import Prepare, TrainTokenizer
from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.doctor import loading

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny():
    return load_experiment(str(ROOT / "configs" / "smoke" / "tiny.py"))


def names(ranks) -> str:
    return ", ".join(f"process {rank}" for rank in sorted(ranks))


def judged(*told: dict):
    (check,) = loading.judge(dict(enumerate(told)), names)
    return check


def looked(experiment, tmp_path, data=None):
    return judged(loading.facts(experiment, data, None, tmp_path / "runs", 0.1))


def told(**changed) -> dict:
    usual = {
        "data": "the config's data",
        "missing": None,
        "mend": None,
        "tokens_per_second": 3e6,
        "tokens_per_step": 512,
        "needed": None,
    }
    return {**usual, **changed}


def test_the_configs_data_is_loaded_and_its_rate_told(tiny, tmp_path):
    check = looked(tiny, tmp_path)
    assert check.status == "ok"
    assert "the config's data" in check.said
    assert check.figures["tokens_per_second"] > 1e3
    assert check.figures["needed"] is None


def test_without_a_config_made_up_data_is_loaded(tmp_path):
    check = looked(None, tmp_path)
    assert check.status == "ok"
    assert "synthetic" in check.said


def test_a_process_with_half_the_rows_is_credited_with_the_batch(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "batch_seconds", lambda loader, seconds: 0.25)
    half = np.arange(4)
    found = loading.facts(tiny, None, half, tmp_path, 0.1)
    assert found["tokens_per_second"] == 4 * tiny.training.tokens_per_step


def test_missing_shards_are_wrong_and_the_command_that_makes_them_is_named(tiny, tmp_path):
    mixture = Mixture(sources=(Weighted(source=Shards(path=str(tmp_path / "gone"))),))
    for check in (
        looked(replace(tiny, data=mixture), tmp_path),
        looked(None, tmp_path, data=tmp_path / "gone"),
    ):
        assert check.status == "WRONG"
        assert "lm corpus tokenize" in check.mend
        assert "synthetic" in check.said


def test_data_that_training_will_prepare_is_a_warning_and_is_not_made(tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Words and words. " * 50)
    prepare = Prepare(
        sources=(str(text),),
        tokenizer=TrainTokenizer(algorithm="bytes"),
        folder=str(tmp_path / "data"),
    )
    experiment = replace(tiny, data=None, tokenizer=None, prepare=prepare)
    check = looked(experiment, tmp_path)
    assert check.status == "warn"
    assert "lm train" in check.mend
    assert not (tmp_path / "data").exists()
    text.unlink()
    assert looked(experiment, tmp_path).status == "WRONG"


@pytest.mark.parametrize(
    ("needed", "status"), [(4e6, "WRONG"), (2.5e6, "warn"), (1e6, "ok"), (None, "ok")]
)
def test_the_rate_is_compared_with_what_the_steps_take(needed, status):
    check = judged(told(needed=needed, tokens_per_second=9e6), told(needed=needed))
    assert check.status == status
    assert "slowest: process 1" in check.said
    assert (check.mend is None) == (status == "ok")


def test_the_steps_of_the_last_run_count_without_their_wait_for_data(tiny, tmp_path):
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    lines = [{"step": n, "time/step_seconds": 0.5, "data/wait_seconds": 0.3} for n in range(9)]
    text = "\n".join(map(json.dumps, [*lines, {"step": 9, "eval/x/loss": 1.0}])) + '\n{"step": 1'
    (run / "metrics.jsonl").write_text(text)
    assert loading.step_seconds(run) == pytest.approx(0.2)
    assert loading.step_seconds(tmp_path) is None
    found = loading.facts(tiny, None, None, tmp_path / "runs", 0.1)
    assert found["needed"] == pytest.approx(tiny.training.tokens_per_step / 0.2)
