"""One, two and four processes train alike, through the command line and on loopback."""

import pytest

from tests.end_to_end.conftest import digests, lm, metrics, together

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def losses(run, name="loss") -> list[float]:
    return [line[f"train/{name}"] for line in metrics(run) if "train/loss" in line]


def held_out(run) -> list[dict]:
    return [line for line in metrics(run) if any(key.startswith("eval/") for key in line)]


def test_any_number_of_processes_trains_alike_and_each_goes_on_with_anothers_run(config, tmp_path):
    """Four devices in all, each time: alone, in two processes, in four."""
    runs = tmp_path / "runs"
    words = ["train", config(2), "--runs", runs, "--name"]
    lm([*words, "one"], tmp_path, devices=4)
    for processes, name in ((2, "two"), (4, "four")):
        said = together([*words, name], tmp_path, processes, devices=4 // processes)
        assert f"({processes} processes)" in said[0]
        assert not any("step 1/" in other for other in said[1:])
        assert losses(runs / name) == pytest.approx(losses(runs / "one"), rel=1e-5)
        assert losses(runs / name, "scored_tokens") == losses(runs / "one", "scored_tokens")
        for a, b in zip(held_out(runs / name), held_out(runs / "one"), strict=True):
            assert a == pytest.approx(b, rel=1e-5)
    # What two processes began, one finishes, on another mesh.
    begun = runs / "begun"
    together([*words, "begun", "--training.steps", "12"], tmp_path, 2, devices=2)
    assert max(digests(begun)) == 12
    said = lm([*words, "begun", "--parallel.mesh.data", "1"], tmp_path, devices=2)
    assert "resuming at step 12" in said
    assert max(digests(begun)) == 24
    assert len(losses(begun)) == 24
