"""The script of a pod, run against a stand-in for gcloud with two workers on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.job import Job, LaunchError
from launch.tpu_vm import TpuVm

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

# A unit of systemd is a process in the background with its number in a file.
SYSTEMCTL = """#!/bin/bash
unit="$HOME/${@: -1}.pid"
case $1 in
is-active) [ -e "$unit" ] && kill -0 "$(cat "$unit")" 2>/dev/null ;;
stop) kill -TERM "$(cat "$unit")"; while kill -0 "$(cat "$unit")" 2>/dev/null; do sleep 0.1; done ;;
esac
"""
SYSTEMD_RUN = """#!/bin/bash
while [[ $1 == --* ]]; do
  case $1 in
  --unit=*) unit=${1#--unit=} ;;
  --property=StandardOutput=append:*) log=${1#*append:} ;;
  esac
  shift
done
setsid "$@" >>"$log" 2>&1 </dev/null &
echo $! >"$HOME/$unit.pid"
"""
CURL = """#!/bin/bash
case ${@: -1} in
*/worker-network-endpoints) echo -n "$ENDPOINTS" ;;
*/agent-worker-number) echo -n "$RANK" ;;
*/tpu-env) printf "%s\\n" "ACCELERATOR_TYPE: 'v5litepod-64'" "$TPU_ENV" ;;
*) exit 22 ;;
esac
"""


@pytest.fixture(autouse=True)
def hear_of_hangups():
    """Also where the tests were begun with nohup: a child ignores what its parent ignores."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def cloud(tmp_path):
    """The stand-ins, a repository with this package and a worker, and a place for its runs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tmp_path / "state-of-run").mkdir()
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud" / "workers").write_text("2")
    texts = {
        "gcloud": f'#!/bin/bash\nexec {sys.executable} {HERE / "gcloud.py"} "$@"\n',
        "sudo": '#!/bin/bash\nexec "$@"\n',
        "systemctl": SYSTEMCTL,
        "systemd-run": SYSTEMD_RUN,
        "curl": CURL,
    }
    for name, text in texts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    source = tmp_path / "source with a space"
    shutil.copytree(ROOT / "launch", source / "launch", ignore=shutil.ignore_patterns("__py*"))
    shutil.copy(HERE / "worker.py", source / "worker.py")
    (source / ".gitignore").write_text("secret\n")
    (source / "secret").write_text("not for others")
    git = ["git", "-C", str(source)]
    subprocess.run([*git, "init", "-q"], check=True)
    (source / "gone").touch()
    subprocess.run([*git, "add", "."], check=True)
    (source / "gone").unlink()
    (source / "new file").touch()
    yield tmp_path
    for noted in (tmp_path / "cloud").glob("worker-*/*.pid"):
        end_process(int(noted.read_text()))


def end_process(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def pod(cloud, *deeds, steps=5, environment=()):
    command = (sys.executable, "worker.py", str(cloud / "state-of-run"), str(steps), *deeds)
    return TpuVm(
        job=Job(name="small", command=command, environment=environment),
        type="v5e-64",
        zone="here",
        source=str(cloud / "source with a space"),
        install="touch installed",
    )


def begin(cloud, made, verb="up", **more):
    (command,) = made.commands(verb)
    env = {
        **os.environ,
        "PATH": f"{cloud / 'tools'}:{os.environ['PATH']}",
        "CLOUD": str(cloud / "cloud"),
        "ENDPOINTS": "a:b:10.0.0.1,c:d:10.0.0.2",
        "TPU_ENV": "",
        "LAUNCH_POLL": "0.3",
        **more,
    }
    env.pop("PYTHONPATH", None)
    return subprocess.Popen(
        ["bash", "-c", command.text()],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def lose(process):
    """As a terminal that is closed."""
    os.killpg(process.pid, signal.SIGHUP)
    try:
        process.communicate(timeout=60)
    finally:
        end_process(process.pid)


def finish(process, timeout=60):
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        end_process(process.pid)
    return process.returncode, out


def wait_for(told, seconds=20.0):
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


def started(cloud):
    return sorted(path.name for path in (cloud / "state-of-run").glob("pid-*"))


# Ends as a run that is finished does, and tells where JAX would find the others.
FINISHES = (
    "import json, os; rank = os.environ['JAX_PROCESS_ID']; "
    "open(os.environ['LM_HEARTBEATS'] + f'/{rank}.json', 'w')"
    ".write(json.dumps({'rank': int(rank), 'step': 9, 'phase': 'done'})); "
    "print(os.environ['JAX_COORDINATOR_ADDRESS'], os.environ['JAX_NUM_PROCESSES'], rank, "
    "os.environ['ODD'], sorted(os.listdir()))"
)


def test_it_creates_installs_starts_and_ends_when_the_run_is_finished(cloud):
    job = Job(
        name="small",
        command=(sys.executable, "-c", FINISHES),
        environment=(("ODD", "a' $b"),),
    )
    made = TpuVm(
        job=job,
        type="v5e-64",
        zone="here",
        source=str(cloud / "source with a space"),
        install="touch installed",
    )
    code, out = finish(begin(cloud, made))
    assert code == 0, out
    assert "finished" in out
    logs = [(cloud / "cloud" / f"worker-{n}" / "small" / "log").read_text() for n in (0, 1)]
    files = ["installed", "launch", "new file", "worker.py"]
    for rank, log in enumerate(logs):
        assert f"10.0.0.1:8482 2 {rank} a' $b ['.gitignore', " in log
        assert all(f"'{name}'" in log for name in files)
        assert "secret" not in log
    calls = (cloud / "cloud" / "calls").read_text()
    assert calls.count("queued-resources create small --accelerator-type=v5litepod-64") == 1
    assert "delete" not in calls


def test_slices_number_their_processes_one_after_the_other(cloud):
    job = Job(name="small", command=(sys.executable, "-c", FINISHES), environment=(("ODD", ""),))
    source = str(cloud / "source with a space")
    made = TpuVm(
        job=job, type="v5e-64", zone="here", slices=3, source=source, install="touch installed"
    )
    told = (
        "MEGASCALE_SLICE_ID: '2'\nMEGASCALE_NUM_SLICES: '3'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9:8080'"
    )
    code, out = finish(begin(cloud, made, TPU_ENV=told, ENDPOINTS="host-a,host-b"))
    assert code == 0, out
    log = (cloud / "cloud" / "worker-1" / "small" / "log").read_text()
    assert "10.0.0.9:8482 6 5 " in log
    assert "--node-count=3 --node-prefix=small" in (cloud / "cloud" / "calls").read_text()


def test_after_a_preemption_it_asks_for_new_slices_and_goes_on(cloud):
    process = begin(cloud, pod(cloud, steps=1200))
    wait_for(lambda: len(started(cloud)) == 2)
    time.sleep(1)
    for noted in (cloud / "cloud").glob("worker-*/*.pid"):
        end_process(int(noted.read_text()))
    (cloud / "cloud" / "state").write_text("SUSPENDED")
    wait_for(lambda: len(started(cloud)) == 4)
    time.sleep(1)
    assert process.poll() is None
    code, _ = finish(begin(cloud, pod(cloud, steps=1200), "stop"))
    assert code == 0
    code, out = finish(process)
    assert code == 0, out
    assert "the slices were lost; asking for new ones" in out
    assert "stopped as asked" in out
    assert sorted(path.name for path in (cloud / "state-of-run").glob("saved-*")) == [
        "saved-0",
        "saved-1",
    ]
    calls = (cloud / "cloud" / "calls").read_text()
    assert calls.count("queued-resources create") == 2
    assert calls.count("queued-resources delete small") == 1


def test_a_mistake_ends_it(cloud):
    code, out = finish(begin(cloud, pod(cloud, "0:*:1:exit2", "1:*:1:exit2")))
    assert code == 2, out
    assert "only you can mend" in out


def test_a_lost_session_does_not_touch_the_run_and_up_finds_it_again(cloud):
    process = begin(cloud, pod(cloud, steps=1200))
    wait_for(lambda: len(started(cloud)) == 2)
    lose(process)
    again = begin(cloud, pod(cloud, steps=1200))
    time.sleep(2.5)
    assert again.poll() is None
    assert len(started(cloud)) == 2
    lose(again)
    _, out = finish(begin(cloud, pod(cloud), "status"))
    assert out.count("launch-status=running") == 2
    finish(begin(cloud, pod(cloud), "stop"))
    assert (cloud / "state-of-run" / "saved-1").exists()


def test_a_refusal_ends_it_with_what_gcloud_said(cloud):
    (cloud / "cloud" / "refuses").touch()
    code, out = finish(begin(cloud, pod(cloud)))
    assert code == 1
    assert "no quota" in out
    assert "asked three times" in out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "v5e-63"}, "the nearest are v5litepod-64"),
        ({"type": "v5p-1"}, "the nearest are"),
        ({"slices": 0}, "--slices 0"),
        ({"spot": True, "reserved": True}, "exclude each other"),
        ({"zone": ""}, "--zone"),
        ({"job": Job(name="My_Run", command=("lm",))}, "for instance 'my-run'"),
    ],
)
def test_a_mistake_is_told(changes, told):
    given = {"job": Job(name="a", command=("lm",)), "type": "v5e-64", "zone": "here"}
    with pytest.raises(LaunchError, match=told):
        TpuVm(**{**given, **changes})
