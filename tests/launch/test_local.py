"""``launch local`` with real processes: what fails is named, what can go on goes on, no orphans."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
WORKER = str(Path(__file__).with_name("worker.py"))
QUICK = ("--back-off", "0.1", "--grace", "1")


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    yield folder
    # Whatever went wrong in a test, nothing of it stays.
    for noted in [*folder.glob("pid-*"), *folder.glob("child-*")]:
        pid = int(noted.read_text())
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"{noted.name} outlived its supervisor")


def launch(tmp_path, *words, command):
    argv = [sys.executable, "-m", "launch", "local", "--logs", str(tmp_path / "logs"), *words]
    return subprocess.Popen(
        [*argv, "--", *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=30):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def worker(state, steps, *deeds):
    return (sys.executable, WORKER, state, steps, *deeds)


def alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def pids(state):
    return [int(path.read_text()) for path in [*state.glob("pid-*"), *state.glob("child-*")]]


def wait_for(told, seconds=10.0):
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def attempts(err):
    return len(re.findall(r"attempt \d+: ", err))


def test_all_processes_finish_with_0_and_each_keeps_a_log_of_its_own(tmp_path, state):
    code, out, err = finish(launch(tmp_path, "--processes", "3", *QUICK, command=worker(state, 3)))
    assert code == 0
    assert out.splitlines() == ["[0] step 0 of 0", "[0] step 1 of 0", "[0] step 2 of 0"]
    assert attempts(err) == 1
    logs = sorted((tmp_path / "logs").glob("*/attempt-1/rank-*.log"))
    assert [log.read_text().splitlines()[-1] for log in logs] == [
        f"step 2 of {rank}" for rank in range(3)
    ]


def test_the_output_of_all_is_shown_where_asked(tmp_path, state):
    words = ("--processes", "2", "--all", *QUICK)
    _, out, _ = finish(launch(tmp_path, *words, command=worker(state, 1)))
    assert sorted(out.splitlines()) == ["[0] step 0 of 0", "[1] step 0 of 1"]


def test_a_rank_that_fails_is_named_and_the_run_restarted(tmp_path, state):
    began = time.monotonic()
    command = worker(state, 20, "2:1:3:exit1")
    code, _, err = finish(launch(tmp_path, "--processes", "3", *QUICK, command=command))
    assert code == 0
    assert attempts(err) == 2
    assert (
        "process 2 on testhost failed with exit code 1 at step 3 (step); "
        'its last line: "deed of 2: exit1"' in err
    )
    assert err.count("failed with exit code") == 1
    assert time.monotonic() - began < 20


def test_a_signal_is_told_in_words(tmp_path, state):
    command = worker(state, 10, "0:1:2:kill")
    code, _, err = finish(launch(tmp_path, *QUICK, command=command))
    assert code == 0
    assert "process 0 on testhost was killed by SIGKILL (signal 9) at step 2 (step)" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_rank_is_named_killed_and_the_run_restarted(tmp_path, state, rank):
    words = ("--processes", "2", "--silence", "2", *QUICK)
    command = worker(state, 40, f"{rank}:1:3:freeze")
    code, _, err = finish(launch(tmp_path, *words, command=command))
    assert code == 0
    assert attempts(err) == 2
    assert re.search(
        rf"process {rank} on testhost froze: no heartbeat for 2 s at step 3 \(step\); "
        rf'its last line: "step 3 of {rank}"',
        err,
    )
    assert not any(alive(pid) for pid in pids(state))


def test_who_falls_because_another_froze_is_not_blamed(tmp_path, state):
    # As JAX does: a peer dies of the frozen one long before the supervisor calls it frozen.
    script = tmp_path / "peer.py"
    script.write_text(
        "import os, runpy, sys, threading, time\n"
        "if os.environ['JAX_PROCESS_ID'] == '1' and not os.path.exists(sys.argv[1] + '/pid-1-1'):\n"
        "    threading.Timer(5, os.abort).start()\n"
        f"runpy.run_path({WORKER!r})\n"
    )
    command = (sys.executable, script, state, 100, "0:1:3:freeze", "1:1:3:waits")
    words = ("--processes", "2", "--silence", "10", "--attempts", "1", *QUICK)
    code, _, err = finish(launch(tmp_path, *words, command=command))
    assert code == 1
    first = err.index("process 0 on testhost froze: no heartbeat for")
    assert first < err.index("with it: process 1 on testhost was killed by SIGABRT (signal 6)")


def test_a_mistake_is_not_repeated(tmp_path, state):
    command = worker(state, 100, "1:1:2:exit2")
    code, _, err = finish(launch(tmp_path, "--processes", "2", *QUICK, command=command))
    assert code == 2
    assert attempts(err) == 1
    assert "exit code 2 is a mistake that only you can mend" in err
    assert "deed of 1: exit2" in err


def test_three_failures_at_one_step_end_it(tmp_path, state):
    command = worker(state, 30, "1:*:4:exit1")
    code, _, err = finish(launch(tmp_path, "--processes", "2", *QUICK, command=command))
    assert code == 1
    assert attempts(err) == 3
    assert "giving up: 3 attempts in a row failed at step 4" in err


def test_progress_between_failures_starts_the_count_again(tmp_path, state):
    deeds = [f"0:{n}:{step}:exit1" for n, step in enumerate([2, 2, 3, 2, 2, 4], start=1)]
    code, _, err = finish(launch(tmp_path, *QUICK, command=worker(state, 6, *deeds)))
    assert code == 0
    assert attempts(err) == 7


def test_pauses_double_without_progress_and_have_a_bound(tmp_path, state):
    deeds = [f"0:{n}:{step}:exit1" for n, step in enumerate([1, 1, 0, 1, 2], start=1)]
    words = ("--back-off", "0.1", "--longest-back-off", "0.3", "--grace", "1")
    code, _, err = finish(launch(tmp_path, *words, command=worker(state, 4, *deeds)))
    assert code == 0
    assert re.findall(r"begins in (\S+) s", err) == ["0.1", "0.2", "0.3", "0.3", "0.1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_passed_on_and_waited_for(tmp_path, state, number):
    process = launch(tmp_path, "--processes", "2", *QUICK, command=worker(state, 400))
    wait_for(lambda: len(pids(state)) == 2)
    time.sleep(0.5)
    process.send_signal(number)
    code, out, err = finish(process)
    assert code == 0
    assert {path.name for path in state.glob("saved-*")} == {"saved-0", "saved-1"}
    assert out.splitlines()[-1] == "[0] saved"
    assert "stopped by SIGTERM" in err
    assert attempts(err) == 1


def test_a_stopped_run_can_have_an_exit_code_of_its_own(tmp_path, state):
    process = launch(tmp_path, "--stopped-code", "75", *QUICK, command=worker(state, 400))
    wait_for(lambda: len(pids(state)) == 1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75


def test_a_signal_that_the_processes_get_too_is_not_doubled(tmp_path, state):
    process = launch(tmp_path, "--no-pass-on", *QUICK, command=worker(state, 400))
    wait_for(lambda: len(pids(state)) == 1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    assert process.poll() is None
    assert not (state / "saved-0").exists()
    os.kill(pids(state)[0], signal.SIGTERM)
    assert finish(process)[0] == 0
    assert (state / "saved-0").exists()


def test_a_file_asks_to_stop(tmp_path, state):
    stop = tmp_path / "stop"
    process = launch(tmp_path, "--stop-file", str(stop), *QUICK, command=worker(state, 400))
    wait_for(lambda: len(pids(state)) == 1)
    time.sleep(0.5)
    stop.touch()
    assert finish(process)[0] == 0
    assert (state / "saved-0").exists()


def test_a_failure_while_stopping_is_told_and_not_restarted(tmp_path, state):
    command = worker(state, 400, "1:1:2:waits")
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, runpy, signal, sys\n"
        "if os.environ['JAX_PROCESS_ID'] == '1':\n"
        "    before = signal.signal\n"
        "    fail = lambda *_: os._exit(9)\n"
        "    signal.signal = lambda number, _: before(number, fail)\n"
        f"runpy.run_path({WORKER!r})\n"
    )
    command = (command[0], script, *command[2:])
    process = launch(tmp_path, "--processes", "2", *QUICK, command=command)
    wait_for(lambda: (state / "waits-1").exists())
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 1
    assert attempts(err) == 1
    assert "process 1 on testhost failed with exit code 9" in err


def test_the_second_signal_ends_at_once(tmp_path, state):
    ignores = tmp_path / "ignores.py"
    ignores.write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1], 'pid-0-1').write_text(str(os.getpid()))\n"
        "time.sleep(300)\n"
    )
    process = launch(tmp_path, *QUICK, command=(sys.executable, ignores, state))
    wait_for(lambda: pids(state))
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _, err = finish(process)
    assert code == 128 + signal.SIGINT
    assert time.monotonic() - began < 2
    assert "asked twice" in err


def test_no_orphan_of_a_supervisor_that_is_killed(tmp_path, state):
    deeds = ("1:1:1:child", "0:1:1:freeze")
    process = launch(tmp_path, "--processes", "2", command=worker(state, 4000, *deeds))
    wait_for(lambda: len(pids(state)) == 3)
    time.sleep(0.5)
    assert all(alive(pid) for pid in pids(state))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in pids(state)), seconds=5)


def test_what_a_finished_process_left_behind_is_ended_too(tmp_path, state):
    code, _, _ = finish(launch(tmp_path, command=worker(state, 3, "0:1:1:child")))
    assert code == 0
    wait_for(lambda: not any(alive(pid) for pid in pids(state)), seconds=5)


def test_words_and_variables_arrive_as_they_were_given(tmp_path):
    odd = ["a b", "$HOME", "quo'te", '"', "*", "--env", "--", "line\nbreak", "é"]
    told = "import os, sys; print(ascii((sys.argv[1:], os.environ['ODD'])))"
    process = launch(tmp_path, "--env", "ODD=x=' $y", command=(sys.executable, "-c", told, *odd))
    code, out, _ = finish(process)
    assert code == 0
    assert out.strip() == ascii((odd, "x=' $y"))


def test_every_process_finds_the_others_and_its_own_devices(tmp_path):
    names = (
        "JAX_COORDINATOR_ADDRESS",
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
        "XLA_FLAGS",
        "CUDA_VISIBLE_DEVICES",
    )
    told = f"import os; print(*[os.environ[n] for n in {names}], sep=';')"
    words = ("--processes", "2", "--all", "--devices-per-process", "3", "--gpus-per-process", "2")
    process = launch(
        tmp_path, *words, "--env", "XLA_FLAGS=--a", command=(sys.executable, "-c", told)
    )
    code, out, _ = finish(process)
    assert code == 0
    zero, one = (line[4:].split(";") for line in sorted(out.splitlines()))
    flags = "--a --xla_force_host_platform_device_count=3"
    assert zero[1:] == ["2", "0", flags, "0,1"]
    assert one[1:] == ["2", "1", flags, "2,3"]
    assert zero[0] == one[0]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", zero[0])


def test_the_dry_run_prints_what_can_be_pasted_and_starts_nothing(tmp_path):
    mark = tmp_path / "a mark"
    process = launch(
        tmp_path, "--dry-run", "--processes", "2", "--env", "A=b c", command=("touch", mark)
    )
    code, out, _ = finish(process)
    assert code == 0
    assert not mark.exists()
    assert not (tmp_path / "logs").exists()
    subprocess.run(["bash", "-e"], input=out, text=True, check=True)
    assert mark.exists()
    assert "'A=b c'" in out
    assert "JAX_PROCESS_ID=1" in out


@pytest.mark.parametrize(
    ("words", "command", "told"),
    [
        ((), (), "no command"),
        (("--processes", "0"), ("true",), "--processes 0 must be above zero"),
        (("--silence", "0"), ("true",), "--silence 0"),
        (("--silence", "soon"), ("true",), "'soon' is no time"),
        (("--env", "A"), ("true",), "write NAME=VALUE"),
        (("--env", "1A=2"), ("true",), "no name of a variable"),
        (("--proceses", "2"), ("true",), "unrecognized arguments"),
        ((), ("no-such-program-here",), "no-such-program-here is no program here"),
    ],
)
def test_a_mistake_is_told_in_one_paragraph_and_nothing_is_run(tmp_path, words, command, told):
    code, out, err = finish(launch(tmp_path, *words, command=command))
    assert code == 2
    assert told in err
    assert err.startswith("launch: ")
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not (tmp_path / "logs").exists()
