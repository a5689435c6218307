"""Saving beside training: asynchronous, whole or not at all, and never more than is to be kept."""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array

from lm.checkpoint.integrity import (
    Digest,
    Digests,
    file_marks,
    read_sums,
    start_sums,
    write_digests,
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

logger = logging.getLogger(__name__)

BARRIER_SECONDS = 1200


@runtime_checkable
class Savable(Protocol):
    """What writes its own files into a folder: a tokenizer."""

    def save(self, folder: Path) -> None:
        """Write the files."""
        ...


@dataclass(frozen=True)
class _Pending:
    """One save under way."""

    step: int
    kinds: dict[str, tuple[str, tuple[int, ...]]]
    sums: dict[str, Array]
    files: dict[str, dict[str, Any]]
    tokenizer: Savable
    began: float


class Store:
    """The checkpoints of one run.

    ``save`` returns as soon as the state may be changed; a thread of its own finishes the save.
    What goes wrong there is raised by the next ``save`` or ``wait``, once, and leaves no step.
    Leave it by ``close`` (or use it as a context), or the last save may be lost at exit.
    """

    def __init__(self, folder: Path, saving: Saving) -> None:
        self._folder = folder
        self._saving = saving
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self.seconds: float | None = None
        """What the last save took until it was whole; None before the first."""
        # Few files, whatever the number of leaves and shards; float32 weights hardly compress,
        # and without trying it takes a quarter of the time.
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False),
            timeout_secs=BARRIER_SECONDS,
        )
        self._barrier: Callable[..., None] = ocp.multihost.get_barrier_sync_fn()

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

        Raises:
            CheckpointError: the save before this one failed, or this one cannot begin.
        """
        self.wait()
        began = time.monotonic()
        if is_whole(self._folder / str(step)):
            return
        leaves = named_leaves(state)
        written = {name: as_written(leaf) for name, leaf in leaves.items()}
        partial = self._partial(step)
        try:
            if jax.process_index() == 0:
                _remove(partial)
                partial.mkdir()
            self._checkpointer.save(partial / STATE, args=ocp.args.PyTreeSave(written))
        except OSError as error:
            self._discard(step)
            raise self._failed(step, error) from error
        files = {DATA: dict(data), EXPERIMENT: experiment, RECORD: to_plain(record)}
        pending = _Pending(
            step=step,
            kinds={name: kind_of(leaf) for name, leaf in leaves.items()},
            sums=start_sums(written),
            files=json.loads(json.dumps(files)),  # a copy: the caller's may change meanwhile
            tokenizer=tokenizer,
            began=began,
        )
        self._thread = threading.Thread(target=self._finish, args=(pending,), name="save")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the save under way, if any, is whole.

        Raises:
            CheckpointError: it failed; the steps before it are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def restore(self, step: int, abstract: Tree) -> Restored:
        """One checkpoint, as ``lm.checkpoint.restore.restore``."""
        return restore(self._folder / str(step), abstract)

    def restore_newest(self, abstract: Tree) -> Restored | None:
        """The newest undamaged checkpoint, as ``lm.checkpoint.restore.restore_newest``."""
        return restore_newest(self._folder, abstract)

    def close(self) -> None:
        """Wait for the save under way and release what Orbax holds.

        Raises:
            CheckpointError: as ``wait``.
        """
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # what went wrong first is the news

    def _finish(self, pending: _Pending) -> None:
        """Complete a save: what Orbax still writes, the files beside it, and the digests, last."""
        try:
            self._checkpointer.wait_until_finished()
            sums = read_sums(pending.sums)
            if jax.process_index() == 0:
                self._make_whole(pending, sums)
            self._barrier(
                key=f"lm_checkpoint_whole_{pending.step}", timeout_ms=BARRIER_SECONDS * 1000
            )
        except BaseException as error:  # whatever it is, it belongs to the caller's thread
            self._discard(pending.step)
            self._failure = self._failed(pending.step, error)
            return
        self.seconds = time.monotonic() - pending.began
        if jax.process_index() == 0:
            self._retire()

    def _make_whole(self, pending: _Pending, sums: dict[str, str]) -> None:
        partial, final = self._partial(pending.step), self._folder / str(pending.step)
        (partial / TOKENIZER).mkdir()
        pending.tokenizer.save(partial / TOKENIZER)
        for name, content in pending.files.items():
            write_json(partial / name, content)
        leaves = {name: Digest(*pending.kinds[name], sums[name]) for name in sums}
        write_digests(partial, Digests(pending.step, leaves, file_marks(partial)))
        if final.exists():  # never finished, for a whole one would not be saved again
            _remove(final)
        os.replace(partial, final)

    def _retire(self) -> None:
        """Delete the checkpoints that need not stay; a failure is no reason to stop a run."""
        for step in self._saving.retired(self.steps()):
            try:
                doomed = self._folder / f"{step}{DELETING}"
                os.replace(self._folder / str(step), doomed)
                _remove(doomed)
            except OSError as error:
                logger.warning("%s: step %d cannot be deleted (%s)", self._folder, step, error)

    def _partial(self, step: int) -> Path:
        return self._folder / f"{step}{PARTIAL}"

    def _discard(self, step: int) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._partial(step), ignore_errors=True)

    def _failed(self, step: int, error: BaseException) -> CheckpointError:
        why = _reason(error)
        last = self.latest()
        good = f"the last good one is step {last}" if last is not None else "none was saved before"
        failure = CheckpointError(
            f"{self._folder}: step {step} could not be saved ({why}); {good}. Make room "
            "or mend the permissions, and start the same command again."
        )
        failure.__cause__ = error
        return failure


def open_store(folder: Path, saving: Saving) -> Store:
    """Open a run's ``checkpoints`` folder for writing; makes it, and clears what was cut short.

    Raises:
        CheckpointError: it cannot be made or written to.
    """
    hush_orbax()
    try:
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for entry in [*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*{DELETING}")]:
                _remove(entry)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written to ({error.strerror or error}). Choose another folder "
            "with --runs, make room, or mend the permissions."
        ) from error
    return Store(folder.resolve(), saving)


def _reason(error: BaseException) -> str:
    """One line of an error; TensorStore's begins with the place and ends with the cause."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 300 else f"{line[:120]} ... {line[-170:]}"


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
