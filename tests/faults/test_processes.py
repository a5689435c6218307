"""Several processes on loopback: one of them dies or freezes, or their number changes."""

from dataclasses import replace

import pytest

from tests.end_to_end.conftest import digests
from tests.faults.battery import Bench, assert_same, assert_same_so_far, batches, fired, losses

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.multiprocess]

STEPS = 16
OPTIONS = ("--training.steps", str(STEPS), "--saving.every", "2", "--evaluation.every", "4")
KILLS = (
    "kill@restore::1",
    "kill@step:3:0",
    "kill@save_begin:2:1",
    "kill@save_folder:2:0",
    "kill@save_copied:2:1",
    "kill@save_written:2:1",
    "kill@save_commit:2:0",
    "kill@save_digests:2:0",
    "kill@evaluate:4:1",
    "kill@evaluated:4:0",
    "kill@retire_half:2:0",
    "kill@last_wait::1",
    "kill@exit::0",
)


def make_bench(folder, compiled) -> Bench:
    return Bench(folder=folder, compiled=compiled, devices=4, data_axis=2, options=OPTIONS)


def test_two_processes_of_which_one_is_killed_again_and_again_end_as_the_undisturbed_ones(
    compiled, tmp_path
):
    bench = make_bench(tmp_path, compiled)
    bench.finish("whole", processes=2)
    newest = 0
    keep = ("--saving.keep", "2")
    for fault in bench.kills("broken", KILLS, processes=2, options=keep):
        before, newest = newest, assert_same_so_far(bench.run("broken"), bench.run("whole"))
        assert newest >= before, fault
    bench.finish("broken", processes=2, options=keep)
    assert_same(bench, "broken", "whole")


def test_two_then_four_then_one_process_see_the_same_batches_and_reach_the_same_loss(
    compiled, tmp_path
):
    """All are killed in a step, and another number of processes goes on."""
    bench = make_bench(tmp_path, compiled)
    alone, other_mesh = replace(bench, devices=1), ("--parallel.mesh.data", "1")
    alone.finish("whole", options=other_mesh)
    for processes, fault in ((2, "kill@step:6"), (4, "kill@step:12")):
        list(bench.kills("elastic", [fault], processes=processes))
    assert max(digests(bench.run("elastic"))) in (8, 10)
    said = alone.finish("elastic", options=other_mesh)
    assert "resuming at step" in said
    assert batches(bench.notes("elastic")) == batches(bench.notes("whole"))
    assert list(losses(bench.run("whole"))) == list(range(1, STEPS + 1))
    assert losses(bench.run("elastic")) == pytest.approx(losses(bench.run("whole")), rel=1e-5)


@pytest.mark.parametrize("processes", [2, 4])
def test_whichever_process_freezes_is_named_and_the_run_ends_as_the_undisturbed_one(
    processes, compiled, tmp_path
):
    """Under a supervisor, which has to see it, end the others and start all again."""
    bench = make_bench(tmp_path, compiled)
    bench.finish("whole", processes=processes)
    faults = [f"stop@step:{3 * rank + 4}:{rank}" for rank in range(processes)]
    code, said = bench.supervise("frozen", ",".join(faults), processes=processes)
    assert sorted(fired(bench.notes("frozen"))) == sorted(faults), said
    assert code == 0, said
    for rank in range(processes):
        assert f"process {rank} on" in said
    assert_same(bench, "frozen", "whole")
