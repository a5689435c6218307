"""Saving beside training: asynchronous, whole or not at all, and never more than is to be kept.

A save that fails does not stop a run.  It is told, what it wrote is removed, and the next one comes
after a pause that grows from failure to failure; only the last state of a run must be saved.  A
checkpoint is deleted when a newer one is whole, never to make room for it.
"""

import asyncio
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import orbax.checkpoint as ocp
from etils import epath

from lm.checkpoint.agree import exchange, look, tell
from lm.checkpoint.integrity import (
    Digest,
    Digests,
    Started,
    file_marks,
    files_of,
    own_sums,
    start_sums,
    write_digests,
    written_sums,
)
from lm.checkpoint.layout import (
    DATA,
    DELETING,
    EXPERIMENT,
    PARTIAL,
    RECORD,
    STATE,
    TOKENIZER,
    is_whole,
    steps,
    write_json,
)
from lm.checkpoint.leaves import Tree, as_written, kind_of, named_leaves
from lm.checkpoint.quiet import hush_orbax
from lm.checkpoint.record import Record
from lm.checkpoint.restore import Restored, restore, restore_newest
from lm.checkpoint.saving import Saving
from lm.config import Plain, to_plain
from lm.errors import CheckpointError
from lm.parallel.memory import give_back
from lm.track.format import duration

logger = logging.getLogger(__name__)

_LEFTOVERS = (f"*{PARTIAL}", f"*{DELETING}", ".open-*")
_THERE = "there"
_SLOW = "the one before it is still being written, the storage is slow"
_MEND = (
    "Make room (delete old steps, or lower --saving.keep), mend the permissions or the mount, and "
    "start the same command again."
)
BESIDE_BYTES = 2**18
"""Room for what stands beside the arrays: metadata, and a tokenizer of the usual size."""


class Patience(NamedTuple):
    """What a store puts up with from its disk; times in seconds."""

    pause: float = 5.0
    """From a failed save to the next one; twice as long after each further failure."""
    longest: float = 300.0
    """The longest such pause."""
    tries: int = 3
    """How often the last state is tried before the run ends in an error."""
    slow: float = 10.0
    """How long a save waits for the one before it; then it is left out."""


PATIENT = Patience()


@runtime_checkable
class Savable(Protocol):
    """What writes its own files into a folder: a tokenizer."""

    def save(self, folder: Path) -> None:
        """Write the files."""
        ...


@dataclass(frozen=True)
class _Wanted:
    """One state to be saved, with what stands beside it."""

    step: int
    leaves: dict[str, Any]
    files: dict[str, dict[str, Any]]
    tokenizer: Savable


class Store:
    """The checkpoints of one run.

    ``save`` returns as soon as the state may be changed; a thread of its own finishes the save.
    One that fails is told as a warning and counted, and leaves no step; ``due`` says when to save
    again.  ``wait`` insists: it tries the last state again, and raises if that cannot be saved.
    Leave it by ``close`` (or use it as a context), or the last save may be lost at exit.
    """

    def __init__(self, folder: Path, saving: Saving, patience: Patience = PATIENT) -> None:
        self.failed = 0
        """Saves that failed or were left out so far."""
        self.seconds: float | None = None
        """What the last save took until it was whole; None before the first."""
        self._folder = folder
        self._saving = saving
        self._patience = patience
        self._thread: threading.Thread | None = None
        self._wanted: _Wanted | None = None
        """The newest state given, until it is whole."""
        self._why: str | None = None
        """What kept it from being saved; None while it is under way."""
        self._left_out = False
        """Whether no attempt was made yet, for the save before it was under way."""
        self._in_a_row = 0
        self._again_at = self._began = 0.0
        self._device = folder.stat().st_dev
        # Few files, whatever the number of leaves and shards; float32 weights hardly compress,
        # and without trying it takes a quarter of the time.  The handler itself rather than
        # Orbax's AsyncCheckpointer: where the save of one process fails, that leaves the others
        # at a barrier.
        self._handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=True, use_zarr3=True, use_compression=False
        )

    def steps(self) -> list[int]:
        """The whole checkpoints, oldest first."""
        return [int(step.name) for step in steps(self._folder)]

    def latest(self) -> int | None:
        """The newest whole checkpoint; None where there is none."""
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        state: Tree,
        *,
        data: Mapping[str, Any],
        experiment: Plain,
        record: Record,
        tokenizer: Savable,
    ) -> None:
        """Begin to save a state; blocks until it is copied from the devices, and no longer.

        A step that is there whole already is left as it is.  Every process must call it.

        Args:
            step: how many steps the state has seen.
            state: any pytree of arrays.
            data: the data position, as JSON holds it.
            experiment: the run as one value, as JSON holds it.
            record: commit, versions, counts.
            tokenizer: writes its files beside the state, from the background.
        """
        files = {DATA: dict(data), EXPERIMENT: experiment, RECORD: to_plain(record)}
        copied = json.loads(json.dumps(files))  # the caller's may change meanwhile
        self._begin(_Wanted(step, named_leaves(state), copied, tokenizer))

    def due(self) -> bool:
        """Whether a save failed and it is time for another one; this process's view."""
        return self._why is not None and time.monotonic() >= self._again_at and self.settle(0.0)

    def wait(self) -> None:
        """Wait until the last state given is whole; every process must call it.

        A save that failed is tried again while its state lives.

        Raises:
            CheckpointError: it cannot be saved; the steps before it are untouched.
        """
        self.settle()
        tries = 0 if self._left_out else 1
        while self._wanted is not None:
            wanted, why = self._wanted, self._why or ""
            lost = any(leaf.is_deleted() for leaf in wanted.leaves.values())
            if lost or tries == self._patience.tries:
                self._wanted = self._why = None
                raise CheckpointError(f"{self._told(wanted.step, why)} {_MEND}")
            if tries:
                time.sleep(self._pause(tries))
            tries += 1
            self._begin(wanted)
            self.settle()

    def settle(self, seconds: float | None = None) -> bool:
        """Wait until no save is under way, whatever came of it.

        Args:
            seconds: the longest wait; None: as long as it takes.

        Returns:
            Whether there is none any more.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def restore(self, step: int, abstract: Tree) -> Restored:
        """One checkpoint, as ``lm.checkpoint.restore.restore``."""
        return restore(self._folder / str(step), abstract)

    def restore_newest(self, abstract: Tree) -> Restored | None:
        """The newest undamaged checkpoint, as ``lm.checkpoint.restore.restore_newest``."""
        return restore_newest(self._folder, abstract)

    def close(self) -> None:
        """Wait for the save under way, whatever becomes of it, and release what Orbax holds."""
        self.settle()
        self._handler.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self.close()

    def _begin(self, wanted: _Wanted) -> None:
        """Copy a state from the devices, and have a thread write it."""
        written = {name: as_written(leaf) for name, leaf in wanted.leaves.items()}
        obstacle = self._prepare(wanted.step, written) if jax.process_index() == 0 else None
        obstacle = tell("save/begin", obstacle)
        if obstacle == _SLOW:
            self._leave_out(wanted)
            return
        self.settle()
        self._wanted, self._why, self._left_out = wanted, None, False
        self._began = time.monotonic()
        if obstacle == _THERE:
            self._wanted = None
            return
        if obstacle is not None:
            self._fail(wanted.step, obstacle)
            return
        writing: list[Any] = []
        sums: Started = {}
        error: Exception | None = None
        try:
            sums = start_sums(written)  # first: once Orbax's threads write, Python waits for them
            place = epath.Path(self._partial(wanted.step) / STATE)
            copying = self._handler.async_save(place, args=ocp.args.PyTreeSave(written))
            writing = list(asyncio.run(copying) or ())
        except Exception as caught:  # the other processes write, and must hear of it
            error = caught
        self._thread = threading.Thread(
            target=self._finish, args=(wanted, writing, sums, error), name="save"
        )
        self._thread.start()

    def _prepare(self, step: int, written: Mapping[str, Any]) -> str | None:
        """Make the folder to write to; says what keeps the step from being written."""
        if not self.settle(self._patience.slow):
            return _SLOW
        try:
            if is_whole(self._folder / str(step)):
                return _THERE
            if self._folder.stat().st_dev != self._device and not self.steps():
                return "its folder is on another disk than at the start: the mount is gone"
            if lack := self._lack_of_room(sum(leaf.nbytes for leaf in written.values())):
                return lack
            partial = self._partial(step)
            _remove(partial)
            partial.mkdir()
            (partial / STATE).mkdir()
        except OSError as error:
            return _reason(error)
        return None

    def _lack_of_room(self, size: int) -> str | None:
        """What to say where the disk cannot hold so many bytes more."""
        found = shutil.disk_usage(self._folder)
        need = size + BESIDE_BYTES
        if found.total == 0 or found.free >= need:  # some network storage says nothing
            return None
        made = self.steps()
        held = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        told = f"; the {len(made)} made before hold {_size(held)} there" if made else ""
        return f"it needs {_size(need)} and the disk has {_size(found.free)} free{told}"

    def _finish(
        self, wanted: _Wanted, writing: list[Any], sums: Started, error: Exception | None
    ) -> None:
        """Complete a save: what Orbax still writes, the files beside it, and the digests, last."""
        try:
            every = exchange("save/written", self._write(wanted.step, writing, sums, error))
            problem = next((one["error"] for one in every if one["error"]), None)
            if jax.process_index() == 0:
                problem = problem or self._make_whole(wanted, every)
                if problem is not None:
                    shutil.rmtree(self._partial(wanted.step), ignore_errors=True)
            problem = tell("save/whole", problem)
        except BaseException as caught:  # another process is gone, or the mistake is ours
            problem = _reason(caught)
        give_back()
        if problem is not None:
            self._fail(wanted.step, problem)
            return
        self.seconds = time.monotonic() - self._began
        self._in_a_row = 0
        if self._wanted is wanted:  # none was left out meanwhile
            self._wanted = None
        if jax.process_index() == 0:
            self._retire()

    def _write(
        self, step: int, writing: list[Any], sums: Started, error: Exception | None
    ) -> dict[str, Any]:
        """Finish this process's part; gives its error, sums and files, for the others to know."""
        lanes: Mapping[str, Any] = {}
        marks: dict[str, str] = {}
        try:
            lanes = own_sums(sums)
        except Exception as caught:
            error = error or caught
        while writing:  # all of them, so that nobody writes any more once this is over
            try:
                writing.pop().result()
            except Exception as caught:
                error = error or caught
        try:
            marks = self._own_marks(step) if error is None else {}
        except OSError as caught:
            error = caught
        who = f"process {jax.process_index()} on {socket.gethostname()}: "
        told = None if error is None else (who if jax.process_count() > 1 else "") + _reason(error)
        return {"error": told, "sums": lanes, "files": marks}

    def _own_marks(self, step: int) -> dict[str, str]:
        """Of the large files, those that this process wrote: to read them all would take long."""
        partial, own = self._partial(step), f"{STATE}/ocdbt.process_{jax.process_index()}"
        return file_marks(partial, [f"{own}/{name}" for name in files_of(partial / own)])

    def _make_whole(self, wanted: _Wanted, every: list[dict[str, Any]]) -> str | None:
        """Commit what all processes have written; says what keeps it from being whole."""
        partial, final = self._partial(wanted.step), self._folder / str(wanted.step)
        try:
            self._handler.finalize(epath.Path(partial / STATE))
            (partial / TOKENIZER).mkdir()
            wanted.tokenizer.save(partial / TOKENIZER)
            for name, content in wanted.files.items():
                write_json(partial / name, content)
            sums = written_sums([one["sums"] for one in every])
            kinds = {name: kind_of(leaf) for name, leaf in wanted.leaves.items()}
            leaves = {name: Digest(*kinds[name], sums[name]) for name in sums}
            marks = {name: mark for one in every for name, mark in one["files"].items()}
            names = files_of(partial)
            marks |= file_marks(partial, [name for name in names if name not in marks])
            files = {name: marks[name] for name in names}
            write_digests(partial, Digests(wanted.step, leaves, files))
            if final.exists():  # never finished, for a whole one would not be saved again
                _remove(final)
            os.replace(partial, final)
        except Exception as error:
            return _reason(error)
        return None

    def _retire(self) -> None:
        """Delete the checkpoints that need not stay; a failure is no reason to stop a run."""
        try:
            for step in self._saving.retired(self.steps()):
                doomed = self._folder / f"{step}{DELETING}"
                os.replace(self._folder / str(step), doomed)
                _remove(doomed)
        except OSError as error:
            logger.warning("%s: old steps cannot be deleted (%s)", self._folder, error)

    def _partial(self, step: int) -> Path:
        return self._folder / f"{step}{PARTIAL}"

    def _pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self._patience.pause * 2 ** (failures - 1), self._patience.longest)

    def _fail(self, step: int, why: str) -> None:
        """Take note that a save failed, and when to try again."""
        self.failed += 1
        self._in_a_row += 1
        pause = self._pause(self._in_a_row)
        self._again_at = time.monotonic() + pause
        self._why = why
        self._warn(step, why, f"Training goes on; the next try is in {duration(pause)}.")

    def _leave_out(self, wanted: _Wanted) -> None:
        """Take note that a save was left out because the one before it is under way."""
        self.failed += 1
        self._again_at = time.monotonic()
        self._wanted, self._why, self._left_out = wanted, _SLOW, True
        self._warn(wanted.step, _SLOW, "Training goes on; the next try is when that is done.")

    def _warn(self, step: int, why: str, then: str) -> None:
        if jax.process_index() == 0:
            logger.warning("%s %s", self._told(step, why), then)

    def _told(self, step: int, why: str) -> str:
        try:
            last = self.latest()
            good = f"the last good one is step {last}" if last is not None else "none is there"
        except OSError as error:
            good = f"its folder cannot be read ({error.strerror or error})"
        return f"{self._folder}: step {step} could not be saved ({why}); {good}."


def open_store(folder: Path, saving: Saving, patience: Patience = PATIENT) -> Store:
    """Open a run's ``checkpoints`` folder for writing; makes it, and clears what was cut short.

    Raises:
        CheckpointError: it cannot be made or written to, or not every process sees it.
    """
    hush_orbax()
    told: list[str] = [uuid.uuid4().hex, ""]
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for entry in (e for end in _LEFTOVERS for e in folder.glob(end)):
                _remove(entry)
            (folder / f".open-{told[0]}").touch()
        except OSError as error:
            told[1] = error.strerror or str(error)
    token, problem = tell("open", told)
    if problem:
        raise CheckpointError(
            f"{folder}: cannot be written to ({problem}). Choose another folder with --runs, make "
            "room, or mend the permissions."
        )
    _meet_at(folder / f".open-{token}")
    return Store(folder.resolve(), saving, patience)


def _meet_at(token: Path) -> None:
    """Make sure that every process sees the file that process 0 made, and remove it."""
    views = look("open/seen", token.exists, lambda views: all(view.seen for view in views))
    if jax.process_index() == 0:
        token.unlink(missing_ok=True)
    if blind := [view.process for view in views if not view.seen]:
        raise CheckpointError(
            f"{token.parent}: process 0 writes to it, and {', '.join(blind)} cannot see that. "
            "Checkpoints must be on storage that all hosts share: mount it on each of them under "
            "this name, or choose another folder with --runs."
        )


def _reason(error: BaseException) -> str:
    """One line of an error; TensorStore's begins with the place and ends with the cause."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 300 else f"{line[:120]} ... {line[-170:]}"


def _size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB" if number < 2**30 else f"{number / 2**30:.1f} GiB"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
