"""Run a command as one or several processes on this machine, and keep it running.

The supervisor starts the processes, watches their exits and heartbeats, ends the whole attempt when
one fails or freezes, says which and where, and starts again after a pause that doubles while there
is no progress.  It gives up where the same step fails again and again, and does not repeat a
mistake of the user (exit code 2).  On a pod, one supervisor on each host watches one process.
"""

import os
import queue
import shutil
import signal
import socket
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from launch.attempt import Asked, Events, Outcome, Watch, at_step, run, signal_name
from launch.heartbeats import Beat
from launch.job import MISTAKE, Command, Job, LaunchError, check_positive


@dataclass(frozen=True, kw_only=True)
class Local:
    """Processes on this machine.

    ``devices_per_process`` gives each so many virtual CPU devices, ``gpus_per_process`` its share
    of the GPUs.  ``attempts`` is the most in all (None: no bound), ``give_up`` how often in a row
    one step may fail, ``back_off`` the first pause between attempts and ``longest_back_off`` the
    last, in seconds.  ``stopped_code`` is the exit code of a run that was asked to stop and did:
    a scheduler that takes 0 for finished wants another.
    """

    job: Job
    processes: int = 1
    devices_per_process: int | None = None
    gpus_per_process: int | None = None
    attempts: int | None = None
    give_up: int = 3
    back_off: float = 5
    longest_back_off: float = 300
    watch: Watch = field(default_factory=Watch)
    logs: Path | None = None
    stopped_code: int = 0

    def __post_init__(self) -> None:
        check_positive(
            processes=self.processes,
            devices_per_process=self.devices_per_process,
            gpus_per_process=self.gpus_per_process,
            attempts=self.attempts,
            give_up=self.give_up,
            back_off=self.back_off,
            silence=self.watch.silence,
            start=self.watch.start,
            grace=self.watch.grace,
        )

    def commands(self) -> list[Command]:
        """What every process of an attempt is started with; they run side by side."""
        port = free_port() if self.processes > 1 else 0
        told: list[Command] = []
        for rank in range(self.processes):
            settings = {**dict(self.job.environment), **self._settings(rank, port)}
            words = [f"{name}={value}" for name, value in settings.items()]
            told.append(
                Command(
                    ("env", *words, *self.job.command),
                    f"process {rank} of {self.processes}, beside the others; "
                    "the supervisor adds LM_HEARTBEATS",
                )
            )
        return told

    def supervise(self) -> int:
        """Run to the end; returns the exit code.

        0 done, 2 the user's mistake, ``stopped_code`` stopped as asked, 1 given up, and 128 and
        the signal's number where that ended it.

        Raises:
            LaunchError: the command is not there.
        """
        environment = {**os.environ, **dict(self.job.environment)}
        if shutil.which(self.job.command[0], path=environment.get("PATH")) is None:
            raise LaunchError(
                f"{self.job.command[0]} is no program here: it is not on PATH, or not executable. "
                "Install lm in the environment that is active, or give the program's path."
            )
        # Supervisors of many hosts may share the folder.
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
        folder = (self.logs or Path("logs")).absolute() / stamp
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise LaunchError(
                f"the logs cannot be kept in {folder}: {error.strerror}. Name another folder with "
                "--logs."
            ) from error
        with _listening() as events:
            return self._supervise(environment, folder, events)

    def _supervise(self, environment: Mapping[str, str], folder: Path, events: Events) -> int:
        history = _History()
        attempt = 0
        while True:
            attempt += 1
            port = free_port() if self.processes > 1 else 0
            began = time.monotonic()
            noun = "process" if self.processes == 1 else "processes"
            _say(f"attempt {attempt}: {self.processes} {noun}; logs in {folder}")
            outcome = run(
                self.job.command,
                [self._environment(environment, rank, port) for rank in range(self.processes)],
                folder / f"attempt-{attempt}",
                self.watch,
                events,
                beating=history.beating,
            )
            _tell(outcome, attempt, time.monotonic() - began)
            code = self._final(outcome)
            if code is not None:
                return code
            assert outcome.first is not None
            beat = outcome.first.beat
            history.note(beat)
            if history.same >= self.give_up:
                _say(
                    f"giving up: {history.same} attempts in a row failed {at_step(beat)}, and "
                    f"another would too. What it said is in {outcome.first.log}"
                )
                return 1
            if attempt == self.attempts:
                _say(f"giving up: that was the last of {attempt} attempts (--attempts).")
                return 1
            pause = min(self.longest_back_off, self.back_off * 2 ** min(history.stuck, 30))
            _say(f"attempt {attempt + 1} begins in {pause:g} s")
            if (number := _asked_within(events, pause)) is not None:
                _say(f"stopped by {signal_name(number)} between two attempts.")
                return 128 + number

    def _final(self, outcome: Outcome) -> int | None:
        """The exit code after this attempt, or None where another may help."""
        if outcome.first is not None:
            if outcome.first.code == MISTAKE:
                _say("not started again: exit code 2 is a mistake that only you can mend.")
                return MISTAKE
            return 1 if outcome.asked is not None else None
        if outcome.asked is not None:
            stopped = all(code == 0 for code in outcome.codes)
            return self.stopped_code if stopped else 128 + outcome.asked
        # Stopped by itself: a time limit, or a notice of maintenance that it read.
        unfinished = any(beat.phase not in (None, "done") for beat in outcome.beats)
        return self.stopped_code if unfinished else 0

    def _environment(self, given: Mapping[str, str], rank: int, port: int) -> dict[str, str]:
        settings = self._settings(rank, port)
        if self.devices_per_process is not None:
            settings["XLA_FLAGS"] = f"{given.get('XLA_FLAGS', '')} {settings['XLA_FLAGS']}".strip()
        # Without it, the last words of a process that is killed stay in its buffer.
        return {"PYTHONUNBUFFERED": "1", **given, **settings}

    def _settings(self, rank: int, port: int) -> dict[str, str]:
        settings: dict[str, str] = {}
        if self.processes > 1:
            settings["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
            settings["JAX_NUM_PROCESSES"] = str(self.processes)
            settings["JAX_PROCESS_ID"] = str(rank)
        if self.devices_per_process is not None:
            count = self.devices_per_process
            settings["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
        if self.gpus_per_process is not None:
            first = rank * self.gpus_per_process
            own = range(first, first + self.gpus_per_process)
            settings["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
        return settings


@dataclass
class _History:
    """Failures so far: how many in a row at this step, and how many without progress."""

    beating: bool = False
    same: int = 0
    stuck: int = -1
    step: int | None = None
    furthest: int = -1

    def note(self, beat: Beat) -> None:
        self.beating |= beat != Beat()
        self.same = self.same + 1 if self.same and beat.step == self.step else 1
        self.step = beat.step
        reached = -1 if beat.step is None else beat.step
        self.stuck = 0 if reached > self.furthest else self.stuck + 1
        self.furthest = max(self.furthest, reached)


def free_port() -> int:
    """A port of the loopback interface that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def _listening() -> Generator[Events, None, None]:
    """Signals as events; a terminal that closes asks as SIGTERM does."""
    events: Events = Events()

    def ask(number: int, _: FrameType | None) -> None:
        events.put(Asked(signal.SIGTERM if number == signal.SIGHUP else number))

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield events
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _asked_within(events: Events, seconds: float) -> int | None:
    """The signal that asks to stop, should one come in time; exits of the last attempt are not."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            event = events.get(timeout=left)
        except queue.Empty:
            return None
        if isinstance(event, Asked):
            return event.number
    return None


def _tell(outcome: Outcome, attempt: int, seconds: float) -> None:
    if outcome.first is None:
        if outcome.asked is not None:
            ended = "all processes have ended"
            if None in outcome.codes:
                ended = "asked twice, all were ended at once"
            _say(f"stopped by {signal_name(outcome.asked)}: {ended}.")
        return
    first = outcome.first
    _say(f"attempt {attempt} failed after {seconds:.0f} s: {first.told()}")
    for other in outcome.others:
        _say(f"    with it: {other.told()}")
    if first.rank != 0 and first.tail:
        _say(f"the last lines of process {first.rank} ({first.log}):")
        for line in first.tail:
            print(f"    {line}", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)
