"""The runs' folder: does it give back what it takes, how fast, is there room, do all see it.

Files are named ``.doctor-*`` and taken away again, also after Ctrl-C or SIGTERM; what a killed
doctor left is taken away by the next one.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm.doctor.check import Check
from lm.doctor.exchange import Exchange
from lm.track.format import grouped

BLOCK = 2**23
PAYLOAD = 2**27
"""Bytes that each process writes and reads back."""
PREFIX = ".doctor-"
STALE = 3_600
"""Seconds after which a file of an earlier doctor is nobody's."""
LOOKS = 3.0
"""Seconds until what another process wrote must be seen."""
VOLATILE = ("tmpfs", "ramfs")


class Speeds(NamedTuple):
    """Bytes a second, of so many bytes."""

    write: float
    read: float
    size: int


class DamagedError(Exception):
    """What was read is not what was written."""


class Scratch:
    """The files of a doctor in a folder, which is made if need be.

    ``close`` takes the files away, and ``leave`` the folders, once all processes have closed.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is made yet."""
        self.folder = folder
        self.stopped = False
        self._lock = threading.Lock()
        self._files: set[Path] = set()
        self._made: list[Path] = []

    def create(self, name: str) -> int:
        """A new file, open for writing and reading.

        Raises:
            OSError: it cannot be made.
        """
        with self._lock:
            if self.stopped:
                raise OSError("stopped")
            self._made += [
                p
                for p in (self.folder, *self.folder.parents)
                if not p.exists() and p not in self._made
            ]
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{PREFIX}{name}"
            self._files.add(path)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def sweep(self) -> None:
        """Take away what a killed doctor left."""
        for path in self.folder.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    def close(self) -> None:
        """Take the files away again, also under one that still writes."""
        self.stopped = True  # who writes stops at the next block
        with self._lock:
            for path in self._files:
                with contextlib.suppress(OSError):
                    path.unlink()

    def leave(self) -> None:
        """Take the folders away that were made and in which nothing came to be."""
        for folder in self._made:  # the innermost first
            with contextlib.suppress(OSError):  # others put something there
                folder.rmdir()


def facts(scratch: Scratch, exchange: Exchange, need_bytes: int, seconds: float) -> dict[str, Any]:
    """What this process finds of the folder; an error is told in words."""
    token = exchange.announce("storage/token", secrets.token_hex(6), seconds)
    found: dict[str, Any] = {"folder": str(scratch.folder), "need_bytes": need_bytes}
    try:
        found |= {"system": file_system(scratch.folder), "free_bytes": free_bytes(scratch.folder)}
        scratch.sweep()
        speeds = measure(scratch, f"{token}-{exchange.rank}", seconds / 2)
        found |= {"write": speeds.write, "read": speeds.read, "payload_bytes": speeds.size}
    except DamagedError as damaged:
        found["damaged"] = str(damaged)
    except OSError as error:
        found["error"] = error.strerror or str(error)
    if exchange.count > 1:
        found["seen"] = _sees(scratch, exchange, str(token), seconds)
    return found


def measure(scratch: Scratch, name: str, seconds: float) -> Speeds:
    """Write, flush to the device, and read back without the page cache's help.

    Raises:
        DamagedError: what was read is not what was written.
        OSError: the folder takes nothing, or not enough.
    """
    random = os.urandom(BLOCK)
    file = scratch.create(name)
    try:
        written, spent = [], 0.0
        while len(written) < PAYLOAD // BLOCK and (spent < seconds / 2 or not written):
            if scratch.stopped:
                raise OSError("stopped")
            turn = 64 * len(written)
            block = random[turn:] + random[:turn]  # no two are alike
            began = time.perf_counter()
            _write_all(file, block)
            spent += time.perf_counter() - began
            written.append(hashlib.sha256(block).digest())
        began = time.perf_counter()
        os.fsync(file)
        spent += time.perf_counter() - began
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        reading = 0.0
        for number, digest in enumerate(written):
            began = time.perf_counter()
            block = os.pread(file, BLOCK, number * BLOCK)
            reading += time.perf_counter() - began
            if hashlib.sha256(block).digest() != digest:
                raise DamagedError(
                    f"bytes {grouped(number * BLOCK)} and on differ from what was written"
                )
    finally:
        os.close(file)
    size = len(written) * BLOCK
    return Speeds(size / spent, size / max(reading, 1e-9), size)


def judge(told: Mapping[int, Any], names: Callable[[Iterable[int]], str]) -> Iterator[Check]:
    """One line for the folder, and one on whether it is shared where there are several."""
    bad = {rank: t for rank, t in told.items() if "error" in t or "damaged" in t}
    if bad:
        yield _failed(bad, names, several=len(told) > 1)
    else:
        yield _room(told, names)
    blind = [rank for rank, t in told.items() if t.get("seen") is False]
    folder = told[min(told)]["folder"]
    if blind:
        mend = "Keep runs on storage that all hosts mount (NFS, Lustre, a bucket): --runs DIR"
        said = f"{folder}: what process 0 writes is not seen by {names(blind)}"
        yield Check("shared", "WRONG", said, {"blind": blind}, mend)
    elif len(told) > 1 and not bad:
        said = f"{folder}: all {len(told)} processes see what process 0 writes"
        yield Check("shared", "ok", said, {"blind": []})


def _failed(
    bad: Mapping[int, Any], names: Callable[[Iterable[int]], str], *, several: bool
) -> Check:
    t = bad[min(bad)]
    where = f" on {names(bad)}" if several else ""
    if "damaged" in t:
        said = f"{t['folder']}{where}: {t['damaged']}"
        mend = "Do not keep checkpoints there: check the disk, its cable, and the host's memory."
        return Check("storage", "WRONG", said, dict(t), mend)
    said = f"{t['folder']}{where}: cannot be written to ({t['error']})"
    mend = "Make room, mend its permissions, or keep runs elsewhere with --runs DIR"
    return Check("storage", "WRONG", said, dict(t), mend)


def _room(told: Mapping[int, Any], names: Callable[[Iterable[int]], str]) -> Check:
    """The slowest process's rates, all written at once, and the least room."""
    slowest = min(told.values(), key=lambda t: t["write"])
    least = min(told, key=lambda rank: told[rank]["free_bytes"])
    free, need = told[least]["free_bytes"], told[least]["need_bytes"]
    each = " a process, all at once" if len(told) > 1 else ""
    said = (
        f"{slowest['folder']} ({slowest['system']}): write {slowest['write'] / 1e9:.2f} GB/s, read "
        f"{slowest['read'] / 1e9:.2f}{each}, digest right; {_size(free)} free"
    )
    said += f", a checkpoint is {_size(need)}" if need else ""
    figures = {**slowest, "free_bytes": free, "need_bytes": need}
    if need > free:
        mend = f"Make room for {_size(need)} at least, or keep runs elsewhere with --runs DIR"
        return Check("storage", "WRONG", said, figures, mend)
    if 2 * need > free:
        mend = "Make room: the last checkpoint stays until the next one is whole."
        return Check("storage", "warn", said, figures, mend)
    if slowest["system"] in VOLATILE:
        mend = "This is memory: checkpoints are gone when the host restarts; use --runs DIR"
        return Check("storage", "warn", said, figures, mend)
    return Check("storage", "ok", said, figures)


def free_bytes(folder: Path) -> int:
    """Room where the folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def file_system(folder: Path) -> str:
    """The kind of file system of a folder, as ``ext4``; ``unknown`` where nothing tells."""
    real = _existing(folder).resolve()
    best, kind = -1, "unknown"
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for line in lines:
        mount, system = line.split(" ")[1:3]
        if real.is_relative_to(mount.replace("\\040", " ")) and len(mount) >= best:
            best, kind = len(mount), system
    return kind


def _sees(scratch: Scratch, exchange: Exchange, token: str, seconds: float) -> bool | None:
    """Whether this process sees a file that process 0 wrote; None: process 0 wrote none."""
    name = f"{token}-seen"
    if exchange.rank == 0:
        written = False
        with contextlib.suppress(OSError):
            file = scratch.create(name)
            _write_all(file, token.encode())
            os.fsync(file)
            os.close(file)
            written = True
        exchange.announce("storage/written", written, seconds)
        return True if written else None
    if not exchange.announce("storage/written", None, seconds):
        return None
    end = time.monotonic() + LOOKS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if (scratch.folder / f"{PREFIX}{name}").read_text() == token:
                return True
        time.sleep(0.05)
    return False


def _existing(folder: Path) -> Path:
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())


def _write_all(file: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(file, rest) :]


def _size(number: int) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"
