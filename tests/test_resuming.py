"""A run on disk, compared with the one that is asked for."""

import pytest

from lm.checkpoint.layout import EXPERIMENT, UNFINISHED, write_json
from lm.checkpoint.lock import LOCK
from lm.errors import CheckpointError
from lm.resuming import saved_experiment


def test_what_a_kill_left_of_a_run_that_had_not_begun_is_no_run(tmp_path):
    assert saved_experiment(tmp_path / "never") is None
    (tmp_path / LOCK).touch()
    (tmp_path / (EXPERIMENT + UNFINISHED)).write_text('{"half')
    assert saved_experiment(tmp_path) is None


def test_an_experiment_that_is_being_written_anew_counts_as_it_was(tmp_path):
    experiment = {"optimizer": {"kind": "AdamW"}}
    write_json(tmp_path / EXPERIMENT, experiment)
    (tmp_path / (EXPERIMENT + UNFINISHED)).write_text('{"half')
    assert saved_experiment(tmp_path) == experiment


def test_files_of_somebody_else_are_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"holds thesis\.tex, and is no run"):
        saved_experiment(tmp_path)
