"""Runs that are disturbed, and the undisturbed one that they are compared with."""

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.end_to_end.conftest import CONFIG, digests, metrics, start, start_together, write_text

INJECT = "tests.faults.inject"
ROOT = str(Path(__file__).parents[2])
"""Where Python finds ``INJECT``, whatever the folder that a run begins in."""
GRACE_SECONDS = 2.0
"""How long the others of a killed or frozen process live on before they are killed too."""

SILENCE_SECONDS = 8
"""The age of a heartbeat at which a supervisor takes a process for frozen."""


class Ended(NamedTuple):
    """How one process ended."""

    code: int
    said: str


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A small experiment: dropout, two microbatches, evaluations, on some mesh."""

    folder: Path
    compiled: Path
    """The cache of compiled programs; shared by all benches, for starts are most of the time."""
    devices: int = 1
    """Of all processes together."""
    data_axis: int = 1
    """The mesh's data axis; fsdp takes the other devices."""
    options: tuple[str, ...] = ()
    """Of ``lm train``, of every run."""

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def notes(self, name: str) -> Path:
        return self.folder / "notes" / name

    def words(self, name: str, spec: str = "none", options: tuple[str, ...] = ()) -> list[Any]:
        """What to give to the injector."""
        config, text = self.folder / "config.py", self.folder / "documents.jsonl"
        if not config.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(text)
            data = str(self.folder / "data")
            config.write_text(CONFIG.format(text=str(text), data=data, data_axis=self.data_axis))
        train = ["train", config, "--runs", self.folder / "runs", "--name", name]
        return [spec, "--notes", self.notes(name), "--", *train, *self.options, *options]

    def start(
        self, name: str, spec: str = "none", *, processes: int = 1, options: tuple[str, ...] = ()
    ) -> list[subprocess.Popen[str]]:
        """Begin a run or go on with it, in so many processes."""
        words = self.words(name, spec, options)
        env = {"JAX_COMPILATION_CACHE_DIR": str(self.compiled), "PYTHONPATH": ROOT}
        if processes == 1:
            return [start(words, self.folder, self.devices, ("-m", INJECT), **env)]
        devices = self.devices // processes
        return start_together(words, self.folder, processes, devices, ("-m", INJECT), **env)

    def attempts(
        self,
        name: str,
        specs: Iterable[str],
        *,
        processes: int = 1,
        options: tuple[str, ...] = (),
        timeout: float = 240,
    ) -> Iterator[list[Ended]]:
        """Start a run and go on with it, once for each SPEC; how the processes ended each time.

        Each attempt loads its libraries, which takes half of its time, while the one before it
        runs.  If a process of an attempt dies or freezes, all of them are killed.
        """
        waiting: deque[tuple[Path, list[subprocess.Popen[str]]]] = deque()
        rest = enumerate(specs)

        def prepare() -> None:
            for number, spec in itertools.islice(rest, 1):
                go = self.folder / f"go-{name}-{number}-{time.monotonic_ns()}"
                spec = f"wait={go}@start" + ("" if spec == "none" else f",{spec}")
                joined = self.start(name, spec, processes=processes, options=options)
                waiting.append((go, joined))

        prepare()
        try:
            while waiting:
                go, joined = waiting[0]
                go.touch()
                prepare()
                ended = over(joined, timeout)
                waiting.popleft()
                yield ended
        finally:
            for _, joined in waiting:
                over(joined, 0)

    def finish(self, name: str, *, processes: int = 1, options: tuple[str, ...] = ()) -> str:
        """Run or go on to the end, undisturbed; what the first process said."""
        ended = over(self.start(name, processes=processes, options=options))
        assert [end.code for end in ended] == [0] * processes, tails(ended)
        return ended[0].said

    def supervise(
        self, name: str, spec: str, *, processes: int, options: tuple[str, ...] = ()
    ) -> Ended:
        """Run to the end under ``python -m launch local``, whatever the faults of SPEC do to it."""
        devices = ["--processes", processes, "--devices-per-process", self.devices // processes]
        patience = ["--back-off", "1s", "--silence", f"{SILENCE_SECONDS}s", "--grace", "2s"]
        logs = ["--logs", self.folder / "logs" / name, "--"]
        command = [sys.executable, "-m", INJECT, *self.words(name, spec, options)]
        env = {"JAX_COMPILATION_CACHE_DIR": str(self.compiled), "PYTHONPATH": ROOT}
        words = ["local", *devices, *patience, *logs, *command]
        return over([start(words, self.folder, program=("-m", "launch"), **env)], timeout=900)[0]

    def kills(
        self,
        name: str,
        faults: Sequence[str],
        *,
        processes: int = 1,
        options: tuple[str, ...] = (),
    ) -> Iterator[str]:
        """Go on until a fault kills or freezes its process, which it must; the same with each."""
        attempts = self.attempts(name, faults, processes=processes, options=options)
        for fault, ended in zip(faults, attempts, strict=True):
            assert fault in fired(self.notes(name)), f"{fault} did not strike: {tails(ended)}"
            assert -signal.SIGKILL in [end.code for end in ended], tails(ended)
            yield fault


def tails(ended: list[Ended]) -> str:
    """What processes said last."""
    return "\n".join(f"process {n}: {end.code}\n{end.said[-1500:]}" for n, end in enumerate(ended))


def over(joined: list[subprocess.Popen[str]], timeout: float = 240) -> list[Ended]:
    """How processes ended: by themselves, or killed because one of them died or froze.

    Those that do neither in ``timeout`` seconds are killed too.
    """
    try:
        _watch(joined, timeout)
    finally:
        for process in joined:
            process.kill()
        said = [process.communicate()[0] for process in joined]
    return [Ended(process.returncode, text) for process, text in zip(joined, said, strict=True)]


def _watch(joined: list[subprocess.Popen[str]], timeout: float) -> None:
    """Return when all have ended, a while after one has failed or frozen, or at the timeout."""
    end = time.monotonic() + timeout
    while any(process.poll() is None for process in joined):
        if any(process.poll() or _is_frozen(process.pid) for process in joined):
            deadline = time.monotonic() + GRACE_SECONDS
            with contextlib.suppress(subprocess.TimeoutExpired):
                for process in joined:
                    process.wait(max(0.0, deadline - time.monotonic()))
            return
        if time.monotonic() > end:
            return
        time.sleep(0.02)


def _is_frozen(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def fired(notes: Path) -> list[str]:
    """The faults that struck, as they were asked for."""
    return [line for file in notes.glob("fired-*") for line in file.read_text().splitlines()]


def batches(notes: Path) -> dict[int, dict[str, str]]:
    """Step -> row -> digest, of all processes; what was placed again must be what it was."""
    found: dict[int, dict[str, str]] = {}
    for file in sorted(notes.glob("batches-*")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            rows = found.setdefault(entry["step"], {})
            for row, digest in entry["rows"].items():
                assert rows.setdefault(row, digest) == digest, f"step {entry['step']}, row {row}"
    return dict(sorted(found.items()))


def losses(run: Path) -> dict[int, float]:
    """Step -> loss; every step has one line."""
    lines = [(line["step"], line["train/loss"]) for line in metrics(run) if "train/loss" in line]
    assert len(dict(lines)) == len(lines), lines
    return dict(lines)


def assert_same_so_far(broken: Path, whole: Path) -> int:
    """Every checkpoint that is there is the undisturbed run's; returns the newest, or 0."""
    expected, found = digests(whole), digests(broken)
    for step, leaves in found.items():
        assert leaves == expected[step], f"step {step}"
    return max((step for step in found), default=0)


def assert_same(bench: Bench, broken: str, whole: str) -> None:
    """A run that is over is the undisturbed one: its state, its metrics and its data, every bit."""
    last = max(digests(bench.run(whole)))
    assert assert_same_so_far(bench.run(broken), bench.run(whole)) == last
    assert metrics(bench.run(broken)) == metrics(bench.run(whole))
    assert list(losses(bench.run(whole))) == list(range(1, last + 1))
    assert batches(bench.notes(broken)) == batches(bench.notes(whole))
    left = [p.name for p in (bench.run(broken) / "checkpoints").iterdir() if not p.name.isdigit()]
    assert all(".damaged" in name for name in left), left
