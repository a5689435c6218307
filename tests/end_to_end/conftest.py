"""Runs of the command line in processes of their own, as a user starts them."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

CONFIG = '''"""A small model on a small text."""

from lm.checkpoint.saving import Saving
from lm.corpus.prepare import Prepare, TrainTokenizer
from lm.experiment import Evaluation, Experiment
from lm.models.gpt2 import gpt2
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.parallel.mesh import Mesh, Parallel
from lm.train.step import Training


def experiment() -> Experiment:
    return Experiment(
        name="run",
        model=gpt2(264, width=32, blocks=2, num_heads=4, length=32, dropout=0.1),
        prepare=Prepare(
            sources=({text!r},),
            tokenizer=TrainTokenizer(algorithm="bytes"),
            held_out=0.2,
            folder={data!r},
        ),
        training=Training(steps=24, sequences=8, length=32, microbatches=2),
        optimizer=AdamW(schedule=Cosine(peak=1e-2, warmup=4)),
        parallel=Parallel(mesh=Mesh(data={data_axis}, fsdp=-1)),
        evaluation=Evaluation(every=8),
        saving=Saving(every=4, keep=100),
    )
'''


def write_text(path: Path) -> Path:
    """Documents of made-up words, a line each."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(60)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(40):
            sentence = " ".join(draw.choices(words, k=draw.randint(20, 60)))
            file.write(json.dumps({"id": f"document {number}", "text": sentence + ".\n"}) + "\n")
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "documents.jsonl")


@pytest.fixture
def config(text: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the config; ``data_axis`` is the mesh's data axis, fsdp takes the other devices."""

    def write(data_axis: int = 1) -> Path:
        path = tmp_path / f"config_{data_axis}.py"
        folder = str(text.parent / "data")
        path.write_text(CONFIG.format(text=str(text), data=folder, data_axis=data_axis))
        return path

    return write


def start(
    words: list[Any],
    cwd: Path,
    devices: int = 1,
    program: Sequence[Any] = ("-m", "lm"),
    **env: str,
) -> subprocess.Popen[str]:
    """``lm WORDS`` in a process with so many devices; ``program`` may be a script in its place."""
    flags = (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    return subprocess.Popen(
        [sys.executable, *map(str, (*program, *words))],
        cwd=cwd,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(cwd / "compiled"),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """What a process said, which must have ended well."""
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


def lm(words: list[Any], cwd: Path, devices: int = 1) -> str:
    """Run ``lm WORDS`` to its end; what it said."""
    return finished(start(words, cwd, devices))


def start_together(
    words: list[Any],
    cwd: Path,
    processes: int,
    devices: int,
    program: Sequence[Any] = ("-m", "lm"),
    **env: str,
) -> list[subprocess.Popen[str]]:
    """``lm WORDS`` (or another program) in processes on loopback, with so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            words,
            cwd,
            devices,
            program,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=str(processes),
            JAX_PROCESS_ID=str(rank),
            **env,
        )
        for rank in range(processes)
    ]


def together(
    words: list[Any],
    cwd: Path,
    processes: int,
    devices: int,
    program: Sequence[Any] = ("-m", "lm"),
) -> list[str]:
    """Run ``lm WORDS`` as several processes on loopback to their end; what each said."""
    joined = start_together(words, cwd, processes, devices, program)
    try:
        return [finished(process) for process in joined]
    finally:
        for process in joined:
            process.kill()


def begin(
    words: list[Any], cwd: Path, processes: int, program: Sequence[Any] = ("-m", "lm")
) -> list[subprocess.Popen[str]]:
    """The processes of a run, each with a sign of life in ``cwd/beats``."""
    (cwd / "beats").mkdir(exist_ok=True)
    return start_together(
        words,
        cwd,
        processes,
        1,
        program,
        LM_HEARTBEATS=str(cwd / "beats"),
        JAX_COMPILATION_CACHE_DIR=str(cwd.parent / "compiled"),
    )


def wait_for_step(
    joined: list[subprocess.Popen[str]], cwd: Path, step: int, seconds: float = 240
) -> None:
    """Until every process is beyond a step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        beats = [json.loads(file.read_text()) for file in (cwd / "beats").glob("*.json")]
        if len(beats) == len(joined) and all(beat["step"] > step for beat in beats):
            return
        assert all(process.poll() is None for process in joined), joined[0].communicate()[0]
        time.sleep(0.05)
    raise AssertionError("training did not begin")


def digests(run: Path) -> dict[int, dict[str, Any]]:
    """Step -> the digest of every leaf of its state."""
    found = {
        int(file.parent.name): json.loads(file.read_text())["leaves"]
        for file in run.glob("checkpoints/*/digests.json")
        if file.parent.name.isdigit()
    }
    return dict(sorted(found.items()))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what is measured by the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "train/", "eval/")
    timed = ("seconds",)
    return [
        {k: v for k, v in line.items() if k.startswith(kept) and not k.endswith(timed)}
        for line in lines
    ]
