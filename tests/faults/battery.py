"""Runs that are disturbed, and the undisturbed one that they are compared with."""

import contextlib
import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.end_to_end.conftest import CONFIG, digests, metrics, start, start_together, write_text

INJECT = "tests.faults.inject"
GRACE_SECONDS = 2.0
"""How long the others of a killed or frozen process live on before they are killed too."""


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

    def attempt(
        self,
        name: str,
        spec: str = "none",
        *,
        processes: int = 1,
        options: tuple[str, ...] = (),
        timeout: float = 240,
    ) -> list[Ended]:
        """Start a run or go on with it until it ends; if a process dies or freezes, all are killed.

        Raises:
            TimeoutError: it does neither.
        """
        words = self.words(name, spec, options)
        devices = self.devices // processes
        env = {"JAX_COMPILATION_CACHE_DIR": str(self.compiled)}
        joined = (
            [start(words, self.folder, devices, INJECT, **env)]
            if processes == 1
            else start_together(words, self.folder, processes, devices, INJECT, **env)
        )
        try:
            _watch(joined, timeout)
        finally:
            for process in joined:
                process.kill()
            ended = [Ended(_code(process), process.communicate()[0]) for process in joined]
        return ended

    def finish(self, name: str, *, processes: int = 1, options: tuple[str, ...] = ()) -> str:
        """Run or go on to the end, undisturbed; what the first process said."""
        ended = self.attempt(name, processes=processes, options=options)
        assert [end.code for end in ended] == [0] * processes, ended
        return ended[0].said

    def kill(
        self, name: str, fault: str, *, processes: int = 1, options: tuple[str, ...] = ()
    ) -> list[Ended]:
        """Go on until the fault kills or freezes its process, which it must."""
        ended = self.attempt(name, fault, processes=processes, options=options)
        assert fault in fired(self.notes(name)), (fault, ended)
        assert -signal.SIGKILL in [end.code for end in ended], ended
        return ended


def _code(process: subprocess.Popen[str]) -> int:
    process.wait()
    return process.returncode


def _watch(joined: list[subprocess.Popen[str]], timeout: float) -> None:
    """Return when all have ended, or a while after one has failed or frozen."""
    end = time.monotonic() + timeout
    while any(process.poll() is None for process in joined):
        if any(process.poll() or _is_frozen(process.pid) for process in joined):
            deadline = time.monotonic() + GRACE_SECONDS
            with contextlib.suppress(subprocess.TimeoutExpired):
                for process in joined:
                    process.wait(max(0.0, deadline - time.monotonic()))
            return
        if time.monotonic() > end:
            raise TimeoutError(f"{joined[0].args}: not over after {timeout:.0f} s")
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
