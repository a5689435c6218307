"""The figures of a held-out set are those of the model: no batch size and no mesh moves them."""

import json

import pytest

from tests.end_to_end.conftest import lm

pytestmark = pytest.mark.slow  # every score starts a process that imports and compiles


def test_batch_size_and_mesh_move_no_figure(config, tmp_path):
    words = ["train", config(), "--runs", tmp_path, "--training.steps", "8"]
    lm([*words, "--optimizer.schedule.warmup", "2"], tmp_path)
    found = []
    for devices, batch in ((1, None), (1, 1), (1, 7), (2, 4), (8, 8)):
        asked = [] if batch is None else ["--batch", batch]
        lm(["evaluate", "run", *asked, "--json", "figures.json"], tmp_path, devices)
        found.append(json.loads((tmp_path / "figures.json").read_text()))
    for name in ("step", "tokens", "bytes"):
        assert len({one[name] for one in found}) == 1
    assert found[0]["tokens"] > 1000
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy"):
        values = [one[name] for one in found]
        assert values == pytest.approx([values[0]] * len(values), rel=1e-6)
