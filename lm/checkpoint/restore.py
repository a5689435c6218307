"""Reading checkpoints back, and making sure that what was read is what was saved."""

import errno
import logging
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Array

from lm.checkpoint.agree import exchange, look, tell
from lm.checkpoint.integrity import (
    DamagedError,
    Digests,
    damage,
    damaged_files,
    large_files,
    read_digests,
    read_sums,
    refuse_unsafe,
)
from lm.checkpoint.layout import (
    DAMAGED,
    DATA,
    STATE,
    is_whole,
    load_json,
    steps,
    unfinished,
)
from lm.checkpoint.leaves import Tree, as_stored, differences, from_stored, named_leaves
from lm.checkpoint.quiet import hush_orbax
from lm.errors import CheckpointError
from lm.track.format import gib

logger = logging.getLogger(__name__)

_NOT_DAMAGE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}
_NOT_DAMAGE_WORDS = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclass(frozen=True)
class Restored:
    """A state as it was saved, with what stands beside it."""

    folder: Path
    step: int
    state: Tree
    data: dict[str, Any]
    """The data position: what ``save`` was given as ``data``."""
    messages: tuple[str, ...] = ()
    """What the user should know: checkpoints that were passed over, and why."""


def restore(step: Path, abstract: Tree) -> Restored:
    """The state and data position of one whole checkpoint.

    Args:
        step: a STEP folder.
        abstract: the state by shapes: leaves with ``shape``, ``dtype`` and ``sharding``; on any
            mesh, whatever the state was saved from.

    Raises:
        DamagedError: a leaf or file is not what was saved; the message names it.
        CheckpointError: a leaf of another shape or dtype, too many or too few; nothing is cast.
    """
    hush_orbax()
    wanted = named_leaves(abstract)
    digests = _on_all(lambda: _checked(step, wanted))
    leaves = _read(step, digests, wanted, every_file=True)
    data = _on_all(lambda: load_json(step, DATA))
    return Restored(step, digests.step, _like(abstract, wanted, leaves), data)


def restore_params(step: Path, abstract: Tree, part: str = "trainable") -> Tree:
    """One part of a checkpoint's state, without reading the rest (the optimizer).

    Args:
        step: a STEP folder.
        abstract: the part by shapes, as for ``restore``.
        part: its name in the state.

    Raises:
        DamagedError, CheckpointError: as ``restore``.
    """
    hush_orbax()
    wanted = {f"{part}.{name}": leaf for name, leaf in named_leaves(abstract).items()}
    digests = _on_all(lambda: _checked(step, wanted, f"{part}."))
    try:
        return _like(abstract, wanted, _read(step, digests, wanted, every_file=False))
    except DamagedError as error:
        raise DamagedError(f"{error} Use another step, or copy this one again.") from error


def restore_newest(run: Path, abstract: Tree) -> Restored | None:
    """The newest checkpoint of a run that is what was saved; None where none was ever finished.

    A damaged one is renamed to ``STEP.damaged``, and the one before it is tried.

    Raises:
        CheckpointError: every checkpoint is damaged, they belong to another model, or the processes
            do not see the same ones.
    """
    found = agreed_steps(run)
    messages = [
        f"{folder}: not a whole checkpoint (never finished, or its digests cannot be read); "
        "passed over."
        for folder in unfinished(run)
        if not found or int(folder.name) > int(found[-1].name)
    ]
    damaged: list[str] = []
    for step in reversed(found):
        try:
            restored = restore(step, abstract)
            if restored.step != int(step.name):
                raise DamagedError(f"{step}: damaged; what was saved as step {restored.step}.")
        except DamagedError as error:
            damaged.append(f"{error} {_set_aside(step)}")
            logger.warning("%s", damaged[-1])
            continue
        told = tuple(messages + damaged)
        return Restored(restored.folder, restored.step, restored.state, restored.data, told)
    if damaged:
        raise CheckpointError(
            f"{run}: none of its {len(damaged)} checkpoints is what was saved. "
            + " ".join(damaged)
            + " Restore the folder from a copy, or start again with --restart."
        )
    return None


def agreed_steps(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first: the same on every process.

    Raises:
        CheckpointError: the processes see different ones.  To go on from an older step would be to
            lose work without a word.
    """
    views = look(
        "steps",
        lambda: [int(step.name) for step in steps(run)],
        lambda views: all(view.seen == views[0].seen for view in views),
    )
    union = {number for view in views for number in view.seen}
    lacks = [
        f"{view.process} does not see step {', '.join(map(str, sorted(lack)))}"
        for view in views
        if (lack := union - set(view.seen))
    ]
    if lacks:
        raise CheckpointError(
            f"{run}: the hosts do not see the same checkpoints: {'; '.join(lacks[:4])}. Mount the "
            "same storage on all of them and start again; or delete these steps, to go on from an "
            "older one."
        )
    return [step for step in steps(run) if int(step.name) in union]


def verify(step: Path) -> list[str]:
    """What of a whole checkpoint is not what was saved, a line for each; empty if all is well.

    It needs no model, and holds one leaf at a time, on the first device.

    Raises:
        CheckpointError: not a whole checkpoint, or one that may not be read.
    """
    hush_orbax()
    digests = _digests(step)
    problems = [f"file {name}" for name in damaged_files(step, digests, digests.files)]
    try:
        described = dict(_handler().metadata(epath.Path((step / STATE).absolute())).tree)
    except Exception as error:
        _refuse_unless_damage(step, error)
        return [*problems, f"its state ({_first_line(error)})"]
    for name, digest in digests.leaves.items():
        try:
            leaf = described[name]
            stored = {name: as_stored(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))}
            _refuse_beyond_memory(step, stored)
            sums = read_sums(_read_arrays(step, stored))
        except CheckpointError:
            raise
        except Exception as error:
            _refuse_unless_damage(step, error)
            sums = {}
        if sums.get(name) != digest.sum:
            problems.append(f"leaf {name}")
    return problems


def _digests(step: Path) -> Digests:
    if not is_whole(step):
        raise CheckpointError(
            f"{step}: not a whole checkpoint. Use one of the steps that the run lists."
        )
    refuse_unsafe(step)
    return read_digests(step)


def _checked(step: Path, wanted: Mapping[str, Any], prefix: str = "") -> Digests:
    """The digests of a checkpoint whose leaves (those with the prefix) are the wanted ones."""
    digests = _digests(step)
    stored = {name: leaf for name, leaf in digests.leaves.items() if name.startswith(prefix)}
    _refuse_differences(step, differences(stored, wanted))
    _refuse_beyond_memory(step, {name: as_stored(leaf) for name, leaf in wanted.items()})
    return digests


def _refuse_beyond_memory(step: Path, stored: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Refuse leaves of which this host cannot hold its part, before any memory is taken."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total = 0
    for name, leaf in stored.items():
        sharding: Any = leaf.sharding
        shard = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        part = shard * len(sharding.addressable_devices)
        total += part if jax.default_backend() == "cpu" else 0
        if max(part, total) > limit:
            raise CheckpointError(
                f"{step}: leaf {name} {leaf.shape} needs {gib(part / 2**30)} on this host, all up "
                f"to it {gib(max(part, total) / 2**30)}, and the host has {gib(limit / 2**30)} of "
                "memory. Read it where there is enough, or do not use this checkpoint."
            )


def _refuse_differences(step: Path, lines: list[str]) -> None:
    if not lines:
        return
    more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
    raise CheckpointError(
        f"{step}: not a state of this experiment: {'; '.join(lines[:8])}{more}. Use the "
        "experiment that is saved beside it (experiment.json), another --name, or --restart."
    )


def _read(
    step: Path, digests: Digests, wanted: Mapping[str, Any], *, every_file: bool
) -> dict[str, Array]:
    """Read the wanted leaves and compare them, and files, with their digests.

    Args:
        step: the STEP folder.
        digests: what vouches for it.
        wanted: the leaves by shapes.
        every_file: whether to read the large files to compare them, shared out among the processes;
            else only where a leaf is damaged, to name the file.
    """
    stored = {name: as_stored(leaf) for name, leaf in wanted.items()}
    large = _on_all(lambda: large_files(step, digests))
    names = [name for name in digests.files if name not in set(large)]
    names += large[jax.process_index() :: jax.process_count()] if every_file else []
    leaves, problems = _on_all(lambda: _try_to_read(step, digests, names, stored))
    if not any(exchange("restore/unreadable", len(leaves) < len(stored))):
        sums = read_sums(leaves)  # all processes take part in the sums, or none
        problems += [f"leaf {name}" for name in sums if sums[name] != digests.leaves[name].sum]
    told = exchange("restore/problems", problems)
    problems = list(dict.fromkeys(problem for one in told for problem in one))
    if not problems:
        return leaves
    if not every_file:
        first = jax.process_index() == 0
        files = tell("restore/files", damaged_files(step, digests, large) if first else None)
        problems += [f"file {name}" for name in files]
    raise damage(step, problems)


def _try_to_read(
    step: Path,
    digests: Digests,
    names: list[str],
    stored: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[dict[str, Array], list[str]]:
    """This process's part of the leaves (none if one cannot be read), and what is damaged."""
    with ThreadPoolExecutor(1) as beside:
        damaged = beside.submit(damaged_files, step, digests, names)
        try:
            leaves, problems = jax.block_until_ready(_read_arrays(step, stored)), []
        except Exception as error:
            _refuse_unless_damage(step, error)
            leaves = {}
            problems = _unreadable(step, stored) or [f"its state ({_first_line(error)})"]
        return leaves, [*problems, *(f"file {name}" for name in damaged.result())]


def _read_arrays(step: Path, stored: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """The arrays of these leaves, placed as described."""
    if not stored:
        return {}
    wanted = {
        name: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        )
        for name, leaf in stored.items()
    }
    arguments = ocp.args.PyTreeRestore(dict(stored), restore_args=wanted, partial_restore=True)
    return _handler().restore(epath.Path((step / STATE).absolute()), args=arguments)


def _handler() -> ocp.PyTreeCheckpointHandler:
    # The handler itself rather than a Checkpointer, which would meet at a barrier in the middle
    # of a restore, where a process that failed never comes.
    return ocp.PyTreeCheckpointHandler()


def _unreadable(step: Path, stored: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    """The leaves that cannot be read even alone."""
    problems: list[str] = []
    for name, leaf in stored.items():
        try:
            jax.block_until_ready(_read_arrays(step, {name: leaf}))
        except Exception:
            problems.append(f"leaf {name}")
    # Where none can be read, it is not the leaves that are at fault.
    return problems if len(problems) < len(stored) else []


def _refuse_unless_damage(step: Path, error: Exception) -> None:
    """Raise what says nothing about the checkpoint: no permission, no memory, a lost mount."""
    text = str(error)
    if isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)):
        raise error
    blocked = isinstance(error, OSError) and error.errno in _NOT_DAMAGE
    if blocked or any(word in text for word in _NOT_DAMAGE_WORDS):
        raise CheckpointError(
            f"{step}: cannot be read ({_first_line(error)}). Look to its permissions and its "
            "storage, and try again."
        ) from error


def _like(abstract: Tree, wanted: Mapping[str, Any], leaves: Mapping[str, Array]) -> Tree:
    """The tree of the leaves that were read, in the order of ``named_leaves``."""
    made = [from_stored(leaf, leaves[name]) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), made)


def _set_aside(step: Path) -> str:
    """Rename a damaged checkpoint, so that it is never listed again; says what was done."""
    exchange("aside/begin", None)  # nobody reads in it any more
    told = None
    if jax.process_index() == 0:
        earlier = len(list(step.parent.glob(step.name + DAMAGED + "*")))
        aside = step.with_name(step.name + DAMAGED + (f"-{earlier + 1}" if earlier else ""))
        try:
            step.rename(aside)
            told = f"It was set aside as {aside.name}."
        except OSError as error:
            told = f"It stays where it is, for it cannot be renamed ({error.strerror or error})."
    return tell("aside/done", told)


def _on_all(do: Callable[[], Any]) -> Any:
    """What it gives here; where it fails on any process, all of them raise the error.

    Raises:
        CheckpointError, DamagedError: as ``do``, on whichever process.
    """
    made, error = None, None
    try:
        made = do()
    except CheckpointError as caught:
        error = caught
    told = [isinstance(error, DamagedError), str(error)] if error is not None else None
    failed = [(rank, one) for rank, one in enumerate(exchange("on_all", told)) if one]
    if error is not None:
        raise error
    if failed:
        rank, (damaged, text) = failed[0]
        raise (DamagedError if damaged else CheckpointError)(f"process {rank}: {text}")
    return made


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
