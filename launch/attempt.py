"""One attempt: start every process of a run, watch them, and end them all together."""

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

from launch import guard
from launch.heartbeats import Beat, Pulse
from launch.job import MISTAKE

_LOOK = 0.2  # seconds between two looks at the heartbeats
_SETTLE = 1.0  # seconds in which the others may say what they saw of a failure
_BEHIND = 3.0  # seconds, or a quarter of the silence allowed: silent for so long when another
# fails, a process was first (heartbeats come each second)


class Exited(NamedTuple):
    """A process ended; ``at`` is in seconds of the monotonic clock."""

    rank: int
    pid: int
    code: int
    at: float


class Asked(NamedTuple):
    """Somebody asked to stop, by this signal."""

    number: int


Events = queue.SimpleQueue[Exited | Asked]


class Failure(NamedTuple):
    """A process that failed: an exit code (a signal below zero), or None of a frozen one."""

    rank: int
    code: int | None
    silent: float
    beat: Beat
    tail: tuple[str, ...]
    log: Path

    def told(self) -> str:
        """What happened to it, in words."""
        rank = self.rank if self.beat.rank is None else self.beat.rank
        where = f"process {rank} on {self.beat.host or socket.gethostname()}"
        if self.code is None:
            how = f"froze: no heartbeat for {self.silent:.0f} s"
        elif self.code < 0:
            how = f"was killed by {signal_name(-self.code)}"
        else:
            how = f"failed with exit code {self.code}"
        last = (
            f'its last line: "{self.tail[-1].strip()[:300]}"' if self.tail else "it wrote nothing"
        )
        return f"{where} {how} {at_step(self.beat)}; {last}"


class Outcome(NamedTuple):
    """How an attempt ended.

    ``asked`` is the signal by which it was asked to stop; ``first`` the process that failed first,
    where one failed; ``others`` those that fell with it by themselves.
    """

    codes: tuple[int | None, ...]
    beats: tuple[Beat, ...]
    asked: int | None
    first: Failure | None
    others: tuple[Failure, ...]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How long to wait, in seconds, and what to show.

    ``silence`` is the age at which a heartbeat means a frozen process, ``start`` the time for its
    first heartbeat (where the command is known to write any), ``grace`` the time between SIGTERM
    and SIGKILL when an attempt is ended.  A file ``stop_file`` asks to stop as SIGTERM does.
    ``pass_on`` is false where whoever signals this process signals the others too (SLURM does), so
    that they do not hear it twice, which means at once.
    """

    silence: float = 20
    start: float = 120
    grace: float = 5
    show_all: bool = False
    stop_file: Path | None = None
    pass_on: bool = True


@dataclass
class _Process:
    rank: int
    popen: subprocess.Popen[bytes]
    pulse: Pulse
    log: Path
    began: float
    tail: deque[str] = field(default_factory=lambda: deque[str](maxlen=20))
    exited: Exited | None = None

    def silent(self, now: float) -> float:
        """Seconds since its last sign of life."""
        return now - (self.began if self.pulse.seen is None else self.pulse.seen)

    def failure(self, now: float) -> Failure:
        code = None if self.exited is None else self.exited.code
        return Failure(
            self.rank, code, self.silent(now), self.pulse.beat, tuple(self.tail), self.log
        )


def signal_name(number: int) -> str:
    """``SIGKILL (signal 9)``."""
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def at_step(beat: Beat) -> str:
    """``at step 12 (evaluate)``, as its last heartbeat says."""
    phase = f" ({beat.phase})" if beat.phase else ""
    if beat.step is None:
        return f"before its first step{phase}"
    return f"at step {beat.step}{phase}"


def run(
    argv: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    folder: Path,
    watch: Watch,
    events: Events,
    *,
    beating: bool,
) -> Outcome:
    """Run the command once in each environment, and return when none is left.

    Args:
        argv: the command of every process.
        environments: one for each process, by rank.
        folder: gets a log for every rank; new for each attempt.
        watch: what is waited for, and how long.
        events: where a signal handler puts ``Asked``.
        beating: whether this command was seen to write heartbeats before.
    """
    folder.mkdir(parents=True)
    # Not beside the logs, whose storage may be far and slow, which is no frozen process.
    with (
        TemporaryDirectory(prefix="launch-", ignore_cleanup_errors=True) as near,
        _group() as group,
    ):
        heartbeats = Path(near) / "heartbeats"
        heartbeats.mkdir()
        processes: list[_Process] = []
        lock = threading.Lock()
        for rank, environment in enumerate(environments):
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**environment, "LM_HEARTBEATS": str(heartbeats)},
                process_group=group,
            )
            # A launcher on each of several hosts watches one process, whose rank is not 0.
            name = f"{rank}.json" if len(environments) > 1 else "*.json"
            log = folder / f"rank-{rank}.log"
            pulse = Pulse(heartbeats, name)
            process = _Process(rank, popen, pulse, log, time.monotonic())
            processes.append(process)
            prefix = f"[{rank}] " if len(environments) > 1 else ""
            show = _shower(prefix, lock) if rank == 0 or watch.show_all else None
            reader = threading.Thread(target=_read, args=(process, show), daemon=True)
            reader.start()
            threading.Thread(target=_wait, args=(process, reader, events), daemon=True).start()
        return _Attempt(processes, watch, events, beating=beating).follow()


class _Attempt:
    def __init__(
        self, processes: list[_Process], watch: Watch, events: Events, *, beating: bool
    ) -> None:
        self.processes, self.watch, self.events = processes, watch, events
        self.beating = beating
        self.asked: int | None = None

    def follow(self) -> Outcome:
        """Watch until all have ended well, or one has not; then end the rest."""
        while any(p.exited is None for p in self.processes):
            if not self._take(_LOOK):
                return self._outcome(None, ())
            now = time.monotonic()
            frozen = self._frozen(now, self.watch.silence, self.watch.start)
            fallen = [p for p in self.processes if p.exited is not None and self._bad(p)]
            if fallen or frozen:
                return self._failed(fallen, frozen)
        fallen = [p for p in self.processes if self._bad(p)]
        return self._failed(fallen, []) if fallen else self._outcome(None, ())

    def _failed(self, fallen: list[_Process], frozen: list[_Process]) -> Outcome:
        now = time.monotonic()
        if fallen:
            now = min(p.exited.at for p in fallen if p.exited is not None)
            # Peers notice a frozen process before we do, and die of it: it was first.
            limit = max(_BEHIND, self.watch.silence / 4)
            frozen = [p for p in self._frozen(now, limit, self.watch.start) if p not in fallen]
        told = {p.rank: p.failure(now) for p in frozen}
        end = time.monotonic() + _SETTLE
        while time.monotonic() < end and any(
            p.exited is None for p in self.processes if p.rank not in told
        ):
            if not self._take(min(_LOOK, max(0.0, end - time.monotonic()))):
                break
        by_itself = [p for p in self.processes if p.exited is not None and self._bad(p)]
        self._end(set(told))
        by_itself.sort(key=lambda p: p.exited.at if p.exited else 0.0)
        # A mistake is one even where the others fell a moment before its process was gone.
        mistaken = [p for p in by_itself if p.exited and p.exited.code == MISTAKE]
        in_order = [p.failure(now) for p in [*mistaken, *by_itself] if p.rank not in told]
        order = [*told.values(), *dict.fromkeys(in_order)]
        return self._outcome(order[0], tuple(order[1:]))

    def _take(self, timeout: float) -> bool:
        """Handle the events of a moment; False when asked a second time to stop."""
        try:
            event = self.events.get(timeout=timeout)
        except queue.Empty:
            event = None
        while event is not None:
            if isinstance(event, Exited):
                # One that was killed with an earlier attempt may be told of late.
                if event.pid == self.processes[event.rank].popen.pid:
                    self.processes[event.rank].exited = event
            elif self.asked is not None:
                return False
            else:
                self._stop(event.number, pass_on=self.watch.pass_on)
            try:
                event = self.events.get_nowait()
            except queue.Empty:
                event = None
        stop_file = self.watch.stop_file
        if stop_file is not None and self.asked is None and stop_file.exists():
            self._stop(signal.SIGTERM, pass_on=True)
        for process in self.processes:
            process.pulse.look()
        self.beating |= any(p.pulse.seen is not None for p in self.processes)
        return True

    def _stop(self, number: int, *, pass_on: bool) -> None:
        self.asked = number
        for process in self.processes:
            if pass_on:
                process.popen.send_signal(number)

    def _frozen(self, now: float, silence: float, start: float) -> list[_Process]:
        return [
            p
            for p in self.processes
            if p.exited is None
            and self.beating
            and p.silent(now) > (start if p.pulse.seen is None else silence)
        ]

    def _bad(self, process: _Process) -> bool:
        code = process.exited.code if process.exited is not None else 0
        # Asked to stop before it could listen: nothing was lost, nothing is wrong.
        return code not in ((0,) if self.asked is None else (0, -self.asked, 128 + self.asked))

    def _end(self, frozen: set[int]) -> None:
        for process in self.processes:
            process.popen.send_signal(signal.SIGTERM)
        end = time.monotonic() + self.watch.grace
        while time.monotonic() < end and any(
            p.exited is None for p in self.processes if p.rank not in frozen
        ):
            if not self._take(min(_LOOK, max(0.0, end - time.monotonic()))):
                return

    def _outcome(self, first: Failure | None, others: tuple[Failure, ...]) -> Outcome:
        codes = tuple(p.exited.code if p.exited is not None else None for p in self.processes)
        beats = tuple(p.pulse.beat for p in self.processes)
        return Outcome(codes, beats, self.asked, first, others)


@contextmanager
def _group() -> Generator[int, None, None]:
    """A process group in which nothing outlives this block, or this process."""
    keeper = guard.start()
    try:
        yield keeper.pid
    finally:
        # The guard is not reaped before, so that the number can be nobody else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(keeper.pid, signal.SIGKILL)
        keeper.communicate()


def _wait(process: _Process, reader: threading.Thread, events: Events) -> None:
    code = process.popen.wait()
    at = time.monotonic()
    # What it started may hold the pipe open for longer.
    reader.join(timeout=1)
    events.put(Exited(process.rank, process.popen.pid, code, at))


def _read(process: _Process, show: Callable[[bytes], None] | None) -> None:
    assert process.popen.stdout is not None
    stream: IO[bytes] = process.popen.stdout
    with process.log.open("wb", buffering=0) as log:
        whole = True
        while piece := stream.readline(65536):
            log.write(piece)
            if show is not None:
                show(piece)
            # A line that is longer than a piece counts as its beginning.
            if whole and (line := _ESCAPES.sub("", piece.decode(errors="replace")).rstrip()):
                process.tail.append(line)
            whole = piece.endswith(b"\n")


_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _shower(prefix: str, lock: threading.Lock) -> Callable[[bytes], None]:
    """Writes lines to standard output, none of them torn by another process's."""
    out = sys.stdout.buffer
    marked = prefix.encode()
    at_start = True

    def show(piece: bytes) -> None:
        nonlocal at_start
        with lock:
            try:
                out.write((marked if at_start else b"") + piece)
                out.flush()
            except (BrokenPipeError, ValueError):
                return  # nobody reads any more; the log has it all
        at_start = piece.endswith(b"\n")

    return show
