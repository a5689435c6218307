"""The batch script, run with stand-ins for srun and scontrol."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.job import Job, LaunchError
from launch.slurm import Slurm

ROOT = Path(__file__).parents[2]
WORKER = str(Path(__file__).with_name("worker.py"))


@pytest.fixture
def cluster(tmp_path):
    """A folder with the stand-ins; what they were asked is in ``asked``."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "job-state").write_text("RUNNING")
    # srun forwards nothing here: the notice has to come by its own way.
    (tools / "srun").write_text('#!/bin/bash\ntrap "" TERM\nexec "${@:2}"\n')
    (tools / "scontrol").write_text(
        "#!/bin/bash\n"
        f'echo "$@" >>"{tmp_path}/asked"\n'
        f'if [ "$1" = show ]; then echo "   JobState=$(cat {tmp_path}/job-state) Reason=None"; fi\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return tmp_path


def begin(cluster, *deeds, steps=3, **changes):
    command = (sys.executable, WORKER, str(cluster / "state"), str(steps), *deeds)
    slurm = Slurm(
        job=Job(name="small", command=command, environment=(("ODD", "a' $b"),)),
        python=sys.executable,
        **changes,
    )
    return subprocess.Popen(
        ["bash", "-c", slurm.script()],
        cwd=cluster,
        env={
            **os.environ,
            "PATH": f"{cluster / 'tools'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": "17",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process):
    out, _ = process.communicate(timeout=30)
    return process.returncode, out


def requeued(cluster):
    asked = cluster / "asked"
    return asked.exists() and "requeue 17" in asked.read_text()


# The worker never says the phase done, as a finished run does: this one does.
FINISHES = (
    "import json, os; "
    "open(os.environ['LM_HEARTBEATS'] + '/0.json', 'w')"
    ".write(json.dumps({'rank': 0, 'step': 9, 'phase': 'done'}))"
)


def test_a_finished_run_is_not_queued_again(cluster):
    job = Job(name="small", command=(sys.executable, "-c", FINISHES))
    script = Slurm(job=job, python=sys.executable).script()
    env = {**os.environ, "PATH": f"{cluster / 'tools'}:{os.environ['PATH']}"}
    env |= {"SLURM_JOB_ID": "17", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], cwd=cluster, env=env, check=False)
    assert done.returncode == 0
    assert not requeued(cluster)


def test_a_mistake_is_not_queued_again(cluster):
    code, out = end(begin(cluster, "0:1:1:exit2"))
    assert code == 2
    assert "only you can mend" in out
    assert not requeued(cluster)


def test_a_failure_is_queued_again_until_it_has_failed_too_often(cluster):
    for _ in range(2):
        code, out = end(begin(cluster, "0:*:1:exit1"))
        assert (code, requeued(cluster)) == (1, True)
        assert "queueing job 17 again: it failed" in out
        (cluster / "asked").unlink()
    code, out = end(begin(cluster, "0:*:1:exit1"))
    assert (code, requeued(cluster)) == (1, False)
    assert "failed 3 times in a row" in out


def test_at_the_end_of_its_time_it_saves_and_is_queued_again(cluster):
    (cluster / "launch-state" / "17").mkdir(parents=True)
    (cluster / "launch-state" / "17" / "failures").write_text("1\n1\n")
    process = begin(cluster, steps=600)
    until = time.monotonic() + 10
    while not (cluster / "state" / "pid-0-1").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    code, out = end(process)
    assert (cluster / "state" / "saved-0").exists()
    assert code == 75
    assert "it was stopped before its end" in out
    assert requeued(cluster)
    # It made progress: what failed before does not count any more.
    assert not (cluster / "launch-state" / "17" / "failures").exists()


def test_what_was_cancelled_stays_so(cluster):
    (cluster / "job-state").write_text("CANCELLED")
    code, _ = end(begin(cluster, "0:1:1:exit1"))
    assert (code, requeued(cluster)) == (1, False)


def test_the_run_stops_by_itself_before_the_end_where_asked():
    job = Job(name="small", command=("lm", "train", "c.py"))
    script = Slurm(job=job, stop_after="3h50m").script()
    assert "  lm train c.py --stop-after 3h50m &\n" in script


def test_every_gpu_has_a_task_of_its_own():
    job = Job(name="small", command=("lm",))
    lines = Slurm(job=job, gpus_per_node=8, nodes=2).script().splitlines()
    assert "#SBATCH --gpus-per-node=8" in lines
    assert "#SBATCH --ntasks-per-node=8" in lines


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nodes": 0}, "--nodes 0"),
        ({"time": "4h"}, "--time 4h"),
        ({"job": Job(name="a b", command=("lm",))}, "--name a b"),
        ({"options": ("--a\n#SBATCH --b",)}, "cannot stand in a line"),
    ],
)
def test_a_mistake_is_told(changes, told):
    with pytest.raises(LaunchError, match=told):
        Slurm(**{"job": Job(name="a", command=("lm",)), **changes})
