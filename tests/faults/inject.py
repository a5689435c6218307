"""``python -m tests.faults.inject SPEC [--notes DIR] -- train CONFIG ...``: lm, with faults.

SPEC is ``ACTION@PHASE[:[STEP][:RANK]]``, or several with commas between, or ``none``.  An action
is ``kill`` (SIGKILL), ``stop`` (SIGSTOP), ``slow=SECONDS``, ``wait=FILE`` (until it is there) or
the name of an errno (``ENOSPC``) to raise as an OSError; a phase is one of ``PHASES``.  Without a
step a fault strikes the first time its phase is reached, without a rank on every process.  The
product knows nothing of this: its seams are wrapped, functions where there are some, else the
renaming of the files that CONTRACTS names.  A seam that is gone is an error.

``--notes DIR`` keeps, for each process, ``fired-RANK`` (a line for each fault as it strikes; one
that is noted there never strikes again, so that a supervisor may start the same words),
``batches-RANK`` (JSON: a digest of every row of every batch that was placed) and ``memory-RANK``
(JSON: resident bytes at every save).
"""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from lm import run as runs
from lm.checkpoint.store import Store
from lm.cli import main
from lm.data.loader import Stream
from lm.parallel import distributed
from lm.track.jsonl import JsonLines

PHASES = {
    "start": "nothing is done yet",
    "claimed": "the run's folder is locked",
    "prepare": "shards are written, their manifest is not",
    "compile": "before the step is compiled",
    "experiment_json": "experiment.json of the run is written beside its place",
    "clear_half": "what an earlier attempt left of a save or deletion is half removed",
    "restore": "before a checkpoint is looked for",
    "restored": "the state is on the devices",
    "metrics_cut": "metrics.jsonl without its lines past the checkpoint is written beside it",
    "set_aside": "a damaged checkpoint was renamed",
    "data": "before batch STEP is asked for",
    "place": "before batch STEP is put on the devices",
    "step": "STEP is dispatched and in flight",
    "metrics": "before the metrics of STEP are written",
    "metrics_torn": "half of the line of STEP is written",
    "evaluate": "before the evaluation after STEP",
    "evaluated": "the evaluation after STEP is written, its step not saved",
    "save_begin": "before the save of STEP",
    "metrics_flush": "before metrics.jsonl is flushed at STEP",
    "save_folder": "before STEP.partial is made",
    "save_copied": "the state is copied, Orbax writes it in the background",
    "save_written": "in the background: Orbax has written STEP.partial/state",
    "save_tokenizer": "in the background: before the tokenizer's folder is made",
    "save_data": "in the background: before data.json of STEP is in its place",
    "save_commit": "in the background: before digests.json of STEP is in its place",
    "save_digests": "in the background: before STEP.partial becomes STEP",
    "renamed": "in the background: STEP is there",
    "retire_begin": "in the background: STEP is STEP.deleting",
    "retire_half": "in the background: half of the files of STEP.deleting are gone",
    "retired": "in the background: STEP is deleted",
    "last_wait": "the last step is made, its save perhaps not finished",
    "summary_json": "summary.json of the run is written beside its place",
    "exit": "all is done but the end of the process",
}
STEP_FOLDER = re.compile(r"(\d+)(|\.partial|\.deleting|\.damaged)(?:-\d+)?")


class Fault(NamedTuple):
    """What happens where, on which process."""

    action: str
    phase: str
    step: int | None
    rank: int | None
    word: str
    """As it was asked for."""


def parse(spec: str) -> list[Fault]:
    """The faults that a SPEC names.

    Raises:
        ValueError: it names an action or phase that is not there.
    """
    faults = []
    for word in spec.split(",") if spec != "none" else []:
        action, _, where = word.partition("@")
        phase, *numbers = where.split(":")
        verb = action.partition("=")[0]
        if phase not in PHASES or not (
            verb in ("kill", "stop", "slow", "wait") or hasattr(errno, verb)
        ):
            raise ValueError(f"{word}: no such fault; phases are {', '.join(PHASES)}")
        step, rank = [*(int(number) if number else None for number in numbers), None, None][:2]
        faults.append(Fault(action, phase, step, rank, word))
    return faults


class Injector:
    """Knows which faults are due, and strikes."""

    def __init__(self, faults: list[Fault], notes: Path | None) -> None:
        self.rank = int(os.environ.get("JAX_PROCESS_ID", "0"))
        self.notes = notes
        fired = self._note_file("fired")
        before = fired.read_text().split() if fired is not None and fired.exists() else []
        mine = [fault for fault in faults if fault.rank in (None, self.rank)]
        self.due = [fault for fault in mine if fault.word not in before]
        self.step = 0
        """The step whose batch was asked for last."""

    def is_due(self, phase: str, step: int | None = None) -> bool:
        """Whether something happens here."""
        return any(fault.phase == phase and fault.step in (None, step) for fault in self.due)

    def at(self, phase: str, step: int | None = None) -> None:
        """The process has come to this phase (of this step)."""
        assert phase in PHASES, phase
        for fault in list(self.due):
            if fault.phase == phase and fault.step in (None, step):
                self.due.remove(fault)
                self.note("fired", fault.word)
                strike(fault.action)

    def note(self, kind: str, line: str) -> None:
        """Add a line to a file of notes, which outlives this process however it ends."""
        path = self._note_file(kind)
        if path is None:
            return
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(file, f"{line}\n".encode())  # at once: a kill may not tear it
        os.close(file)

    def _note_file(self, kind: str) -> Path | None:
        return None if self.notes is None else self.notes / f"{kind}-{self.rank}"


def strike(action: str) -> None:
    """Do it."""
    verb, _, value = action.partition("=")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal may need a moment to arrive; nothing may happen meanwhile
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "slow":
        time.sleep(float(value))
    elif verb == "wait":
        while not Path(value).exists():
            time.sleep(0.01)
    else:
        number = getattr(errno, verb)
        raise OSError(number, os.strerror(number))


def wrap(
    owner: Any,
    name: str,
    *,
    before: Callable[..., Any] = lambda *_, **__: None,
    after: Callable[..., Any] = lambda *_, **__: None,
) -> None:
    """Call ``before`` and ``after`` with the arguments of ``owner.name``, whenever it is called."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        result = original(*args, **kwargs)
        after(*args, **kwargs)
        return result

    setattr(owner, name, wrapped)


def install(injector: Injector) -> None:
    """Wrap every seam."""
    at = injector.at
    wrap(distributed, "start", after=keep_every_program)
    wrap(runs.Run, "claim", after=lambda *_: at("claimed"))
    wrap(runs.Run, "compile", before=lambda *_: at("compile"))
    wrap(runs.Run, "finish_saving", before=lambda *_: at("last_wait"))
    wrap(
        Store,
        "restore_newest",
        before=lambda *_: at("restore"),
        after=lambda *_: at("restored"),
    )
    _wrap_job(injector)
    _wrap_stream(injector)
    _wrap_metrics(injector)
    _wrap_store(injector)
    _wrap_files(injector)


def keep_every_program() -> None:
    """Small programs are kept too in the cache of compiled ones: a second less at each start."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _wrap_job(injector: Injector) -> None:
    begin = runs.Run.begin
    at = injector.at

    def begun(self: runs.Run, *args: Any, **kwargs: Any) -> Any:
        job, *rest = begin(self, *args, **kwargs)

        def place(batch: Any) -> Any:
            at("place", injector.step)
            injector.note("batches", json.dumps({"step": injector.step, "rows": rows_of(batch)}))
            return job.place(batch)

        def step(*step_args: Any) -> Any:
            made = job.step(*step_args)
            at("step", injector.step)
            return made

        def track(number: int, *track_args: Any) -> None:
            at("metrics", number)
            job.track(number, *track_args)

        def evaluate(number: int, *evaluate_args: Any) -> None:
            at("evaluate", number)
            job.evaluate(number, *evaluate_args)
            at("evaluated", number)

        def save(number: int, *save_args: Any) -> None:
            at("save_begin", number)
            injector.note("memory", json.dumps({"step": number, "bytes": resident()}))
            job.save(number, *save_args)

        wrapped = job._replace(place=place, step=step, track=track, evaluate=evaluate, save=save)
        return (wrapped, *rest)

    runs.Run.begin = begun


def rows_of(batch: Any) -> dict[int, str]:
    """The digest of each row of this process's part of a batch, by its number in the whole."""
    found = {}
    for place, number in enumerate(batch.rows.tolist()):
        parts = [leaf[place].tobytes() for leaf in jax.tree.leaves(batch)]
        found[number] = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    return found


def resident() -> int:
    """Bytes of this process in the machine's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _wrap_stream(injector: Injector) -> None:
    def asked(stream: Stream) -> None:
        injector.step = stream.position // stream.loader.sequences + 1
        injector.at("data", injector.step)

    wrap(Stream, "__next__", before=asked)


def _wrap_metrics(injector: Injector) -> None:
    def half(lines: JsonLines, step: int, _: Any) -> None:
        if injector.is_due("metrics_torn", step):
            lines.file.write(f'{{"step": {step}, "train/lo')
            lines.file.flush()
            injector.at("metrics_torn", step)

    wrap(JsonLines, "__call__", before=half)
    wrap(JsonLines, "flush", before=lambda _: injector.at("metrics_flush", injector.step))


def _wrap_store(injector: Injector) -> None:
    begin = ocp.PyTreeCheckpointHandler.async_save

    async def copied(handler: Any, directory: Any, *args: Any, **kwargs: Any) -> Any:
        writing = await begin(handler, directory, *args, **kwargs)
        injector.at("save_copied", numbered(Path(directory).parent).step)
        return writing

    ocp.PyTreeCheckpointHandler.async_save = copied
    wrap(Store, "_own_marks", before=lambda _, step: injector.at("save_written", step))


BEFORE_RENAME = {
    ("", "experiment.json"): "experiment_json",
    ("", "metrics.jsonl"): "metrics_cut",
    ("", "summary.json"): "summary_json",
    ("", "manifest.json"): "prepare",
    (".partial", "data.json"): "save_data",
    (".partial", "digests.json"): "save_commit",
}
"""By the kind of folder, and the name that a file is about to get."""
AFTER_RENAME = {"": "renamed", ".deleting": "retire_begin", ".damaged": "set_aside"}
"""By the kind that a folder has become."""


def _wrap_files(injector: Injector) -> None:
    at = injector.at

    def before_mkdir(path: Any, *_: Any, **__: Any) -> None:
        folder = Path(path)
        if numbered(folder).kind == ".partial":
            at("save_folder", numbered(folder).step)
        if numbered(folder.parent).kind == ".partial" and folder.name == "tokenizer":
            at("save_tokenizer", numbered(folder.parent).step)

    def before_rename(_: Any, target: Any, **__: Any) -> None:
        step, kind = numbered(Path(target))
        if step is not None and not kind:
            at("save_digests", step)
        step, kind = numbered(Path(target).parent)
        phase = BEFORE_RENAME.get((kind, Path(target).name))
        if phase is not None:
            at(phase, step)

    def after_rename(_: Any, target: Any, **__: Any) -> None:
        step, kind = numbered(Path(target))
        if step is not None and kind in AFTER_RENAME:
            at(AFTER_RENAME[kind], step)

    wrap(os, "mkdir", before=before_mkdir)
    for name in ("rename", "replace"):
        wrap(os, name, before=before_rename, after=after_rename)
    _wrap_rmtree(injector)


def _wrap_rmtree(injector: Injector) -> None:
    def before(path: Any, *_: Any, **__: Any) -> None:
        step, kind = numbered(Path(path))
        phase = "retire_half" if injector.step else "clear_half"  # while training, or before
        if kind in (".partial", ".deleting") and injector.is_due(phase, step):
            files = sorted(file for file in Path(path).rglob("*") if file.is_file())
            for file in files[: len(files) // 2]:
                file.unlink()
            injector.at(phase, step)

    def after(path: Any, *_: Any, **__: Any) -> None:
        step, kind = numbered(Path(path))
        if kind == ".deleting" and injector.step:
            injector.at("retired", step)

    wrap(shutil, "rmtree", before=before, after=after)


class Numbered(NamedTuple):
    """What the name of a checkpoint's folder says."""

    step: int | None
    kind: str
    """``.partial``, ``.deleting``, ``.damaged``, or nothing."""


def numbered(folder: Path) -> Numbered:
    """The step of a checkpoint's folder, and its kind; no step for any other folder."""
    found = STEP_FOLDER.fullmatch(folder.name)
    if found is None or folder.parent.name != "checkpoints":
        return Numbered(None, "")
    return Numbered(int(found[1]), found[2])


def run(argv: list[str]) -> int:
    """Run lm with faults; its exit code."""
    own, words = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    notes = Path(own[own.index("--notes") + 1]) if "--notes" in own else None
    if notes is not None:
        notes.mkdir(parents=True, exist_ok=True)
    injector = Injector(parse(own[0]), notes)
    injector.at("start")
    install(injector)
    code = main.main(words)
    injector.at("exit")
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
