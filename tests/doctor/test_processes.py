"""Real processes on loopback, as a pod's hosts are; what is planted on one is named."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

TINY = str(Path(__file__).parents[2] / "configs" / "smoke" / "tiny.py")
PLANTED = """
import os, sys, time
from lm.doctor import collectives, versions
second = os.environ.get("JAX_PROCESS_ID") == "1"
"""
RUN = """
from lm.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
WRONG_SUM = """
right = collectives.all_reduce
if second:
    collectives.all_reduce = lambda x, axis: right(x, axis) + (axis == "fsdp")
"""
OTHER_VERSION = """
found = versions.version_of
if second:
    versions.version_of = lambda name: "0.1" if name == "grain" else found(name)
"""
DIES = """
from lm.doctor import examination
def die(self):
    os._exit(9)
if second:
    examination.Case._storage = die
"""


def started(words, planted: str, cwd: Path, **env: str) -> subprocess.Popen:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return subprocess.Popen(
        [sys.executable, "-c", PLANTED + planted + RUN, "doctor", *words],
        cwd=cwd,
        env={**os.environ, **flags, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(words, planted: str, cwd: Path, processes: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        started(
            words,
            planted,
            cwd,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=str(processes),
            JAX_PROCESS_ID=str(rank),
        )
        for rank in range(processes)
    ]


def ended(joined: list[subprocess.Popen], seconds: float = 120) -> list[tuple[int, str, str]]:
    end = time.monotonic() + seconds
    try:
        said = [process.communicate(timeout=end - time.monotonic()) for process in joined]
    finally:
        for process in joined:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(joined, said, strict=True)]


WORDS = [TINY, "--parallel.mesh.data", "2", "--json", "found.json"]


def look(planted: str, cwd: Path) -> tuple[dict, list[tuple[int, str, str]]]:
    told = ended(start(WORDS, planted, cwd))
    assert not any("Traceback" in err for _, _, err in told), told
    found = json.loads((cwd / "found.json").read_text())
    (cwd / "found.json").unlink()
    assert list(cwd.iterdir()) == []
    return {check["name"]: check for check in found["checks"]}, told


def test_two_processes_agree_and_one_of_them_speaks(tmp_path):
    checks, told = look("", tmp_path)
    assert [code for code, _, _ in told] == [0, 0], told
    assert told[1][1].count("versions") == 0
    assert len(told[0][1].splitlines()) <= 24 + 2  # Gloo says two lines of its own
    assert list(checks) == ["versions", "code", "devices", "mesh", "data", "fsdp", "clocks",
                            "host", "storage", "shared", "loader"]  # fmt: skip
    assert checks["devices"]["figures"]["count"] == 4
    offset, within = checks["clocks"]["figures"]["seconds_ahead"]["1"]
    assert abs(offset) <= within + 1e-3, "one machine has one clock"


@pytest.mark.parametrize(
    ("planted", "line", "said"),
    [
        (WRONG_SUM, "fsdp", "seen by process 1"),
        (OTHER_VERSION, "versions", "process 1"),
    ],
    ids=["a wrong sum", "another version"],
)
def test_what_is_wrong_on_one_is_named_and_both_exit_with_1(tmp_path, planted, line, said):
    checks, told = look(planted, tmp_path)
    assert [code for code, _, _ in told] == [1, 1], told
    assert checks[line]["status"] == "WRONG"
    assert said in checks[line]["said"]
    assert [name for name, check in checks.items() if check["status"] == "WRONG"] == [line]


@pytest.mark.faults
def test_a_process_that_dies_is_named_by_the_one_that_is_left(tmp_path):
    first, second = ended(start([*WORDS, "--seconds", "10"], DIES, tmp_path))
    assert second[0] == 9
    assert first[0] == 1, first
    assert "no answer from process 1" in first[1]
    assert "Traceback" not in first[2]


def test_alone_where_two_are_wanted_ends_in_time_and_says_so(tmp_path):
    lonely, other = start(["--seconds", "6"], "time.sleep(0 if second else 60)", tmp_path)
    began = time.monotonic()
    try:
        out, err = other.communicate(timeout=60)
    finally:
        lonely.kill()
        lonely.communicate()
    assert other.returncode == 1, out + err
    assert time.monotonic() - began < 45
    assert "processes  WRONG" in out


@pytest.mark.faults
def test_one_that_is_stopped_leaves_nothing(tmp_path):
    slow = """
from lm.doctor import storage
storage.hashlib = type("h", (), {"sha256": lambda block: time.sleep(60)})
"""
    process = started(["--runs", "runs"], slow, tmp_path)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("runs/.doctor-*")) and time.monotonic() < end:
        time.sleep(0.02)
    assert list(tmp_path.glob("runs/.doctor-*"))
    process.send_signal(signal.SIGTERM)
    (told,) = ended([process])
    assert told[0] == 130, told
    assert list(tmp_path.iterdir()) == []
