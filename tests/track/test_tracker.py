"""All trackers together, as a run uses them."""

import io

import pytest

from lm.config import from_plain, to_plain
from lm.errors import ResourceError
from lm.track.jsonl import read
from lm.track.tracker import Trackers

ALL = Trackers()


def track(run, steps, *, restored_step, config=ALL):
    stream = io.StringIO()
    tracker = config.build(run, restored_step=restored_step, total_steps=100, stream=stream)
    for step in steps:
        tracker(step, {"train/loss": float(step), "throughput/mfu_causal": None})
    tracker.flush()
    tracker.close()
    return stream.getvalue()


def test_every_tracker_gets_every_step_and_a_resumed_run_has_no_step_twice(tmp_path):
    assert "step 1/100" in track(tmp_path, range(1, 8), restored_step=0)
    track(tmp_path, range(6, 10), restored_step=5)
    assert [entry["step"] for entry in read(tmp_path / "metrics.jsonl")] == list(range(1, 10))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # test_tensorboard reads them


def test_what_is_not_chosen_leaves_no_trace(tmp_path):
    config = Trackers(console=False, jsonl=False, tensorboard=False)
    assert track(tmp_path, [1], restored_step=0, config=config) == ""
    assert list(tmp_path.iterdir()) == []


def test_the_choice_survives_json():
    config = Trackers(tensorboard=False)
    assert from_plain(Trackers, to_plain(config)) == config


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "tensorboard").write_text("a file in the way")
    with pytest.raises(ResourceError, match="tensorboard: cannot be written"):
        track(tmp_path, [1], restored_step=0)
