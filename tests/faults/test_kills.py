"""SIGKILL at every phase of a run; each start costs seconds, hence slow."""

import pytest

from tests.faults.battery import Bench, assert_same, assert_same_so_far

pytestmark = [pytest.mark.slow, pytest.mark.faults]

KILLS = (
    "start",
    "claimed",
    "prepare",
    "compile",
    "restore",
    "data:1",
    "place:2",
    "step:2",
    "save_folder:2",
    "save_copied:2",
    "clear_half:2",
    "save_written:2",
    "save_tokenizer:2",
    "save_data:2",
    "save_commit:2",
    "save_digests:2",
    "renamed:2",
    "experiment_json",
    "restored",
    "metrics_torn:4",
    "metrics:4",
    "metrics_cut",
    "evaluate:4",
    "evaluated:4",
    "save_begin:4",
    "metrics_flush:4",
    "retire_begin:2",
    "retire_half:4",
    "retired:6",
    "last_wait",
    "summary_json",
    "exit",
)
"""In the order in which a run comes to them; it saves every other step and keeps two."""


def test_a_run_killed_before_its_experiment_was_in_its_place_begins_anew(compiled, tmp_path):
    bench = Bench(folder=tmp_path, compiled=compiled, options=("--training.steps", "8"))
    assert list(bench.kills("broken", ["kill@experiment_json"]))
    bench.finish("broken")


@pytest.mark.parametrize(("devices", "data_axis"), [(1, 1), (4, 2)], ids=["alone", "data2-fsdp2"])
def test_a_run_killed_at_every_phase_in_turn_ends_as_the_undisturbed_one(
    devices, data_axis, compiled, tmp_path
):
    bench = Bench(
        folder=tmp_path,
        compiled=compiled,
        devices=devices,
        data_axis=data_axis,
        options=("--training.steps", "16", "--saving.every", "2", "--evaluation.every", "4"),
    )
    whole, broken = ("--prepare.folder", "whole"), ("--prepare.folder", "broken")
    bench.finish("whole", options=whole)
    newest = 0
    faults = [f"kill@{phase}" for phase in KILLS]
    for fault in bench.kills("broken", faults, options=("--saving.keep", "2", *broken)):
        before, newest = newest, assert_same_so_far(bench.run("broken"), bench.run("whole"))
        assert newest >= before, fault
    bench.finish("broken", options=("--saving.keep", "2", *broken))
    assert_same(bench, "broken", "whole")
