"""A run from config to exported model in one process, through the command line."""

import json
from pathlib import Path

import jax
import pytest

from lm.cli.main import main

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def small_cost(monkeypatch):
    """What a launcher may have set is no matter here; what is compiled runs a few times only."""
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    # In a process of many tests the cache of compiled programs stays as it is.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_the_smoke_config_trains_and_every_verb_reads_what_it_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def lm(*words: str):
        assert main([*words, "--json", "figures.json"]) == 0, capsys.readouterr()
        return json.loads(Path("figures.json").read_text())

    config, run = str(ROOT / "configs/smoke/tiny.py"), "runs/tiny"
    trained = lm("train", config, "--training.steps", "12", "--optimizer.schedule.warmup", "2")
    assert (trained["step"], trained["finished"]) == (12, True)
    lines = [json.loads(x) for x in Path(run, "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 2
    assert "<svg" in Path(run, "report.html").read_text()
    seen = lm("inspect", run, "--verify")
    assert seen["verified"]
    assert seen["parameters"] == trained["parameters"]
    (written,) = lm("generate", run, "--prompt", "ab", "--max-tokens", "5", "--temperature", "0")
    assert len(written["ids"]) == 5
    out = lm("export", run, "exported")
    assert {"config.json", "README.md"} <= set(out["files"])
    again = lm("train", config, "--training.steps", "12", "--optimizer.schedule.warmup", "2")
    assert again["step"] == 12
    told = capsys.readouterr().out
    assert "is finished: step 12" in told


def test_a_config_that_is_not_there_is_one_paragraph_and_exit_2(capsys):
    assert main(["train", "configs/smoke/tinny.py"]) == 2
    told = capsys.readouterr().err
    assert "configs/smoke/tinny.py" in told
    assert "Traceback" not in told
