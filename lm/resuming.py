"""A run on disk compared with the one that is asked for."""

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.checkpoint.layout import EXPERIMENT, UNFINISHED, load_json, steps
from lm.checkpoint.lock import LOCK, cannot_write
from lm.config import diff, from_plain, to_plain
from lm.errors import CheckpointError, ConfigError
from lm.experiment import Experiment
from lm.track.format import rate

logger = logging.getLogger(__name__)
FIXED = ("model", "objective", "data", "tokenizer", "prepare", "training.seed",
         "training.sequences", "training.length")  # fmt: skip
"""What a resumed run must have in common with the run it resumes."""


def saved_experiment(folder: Path) -> dict[str, Any] | None:
    """The experiment of the run in a folder, as JSON; None where there is no run.

    Raises:
        CheckpointError: files that are no run's, or a run whose experiment is unreadable.
        ResourceError: the folder cannot be read.
    """
    unreadable: CheckpointError | None = None
    for place in (folder, *reversed(steps(folder))):
        try:
            if (found := _experiment_in(place)) is not None:
                return found
        except CheckpointError as error:  # the checkpoints have copies
            logger.warning("%s", error)
            unreadable = unreadable or error
    if unreadable is not None:
        raise unreadable
    try:
        others = {entry.name for entry in folder.iterdir()} - {LOCK, EXPERIMENT + UNFINISHED}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_write(folder, error) from error
    if others:
        raise CheckpointError(
            f"{folder}: holds {', '.join(sorted(others)[:4])}, and is no run. Give this "
            "run another name (--name NAME), or keep runs elsewhere (--runs DIR)."
        )
    return None


def _experiment_in(place: Path) -> dict[str, Any] | None:
    if not (place / EXPERIMENT).exists():
        return None
    found = load_json(place, EXPERIMENT)
    if isinstance(found.get("optimizer"), dict) and "kind" in found["optimizer"]:
        return found
    raise CheckpointError(
        f"{place / EXPERIMENT}: not the experiment of a run. Give this run another "
        "name (--name NAME), or move the folder aside and begin anew (--restart)."
    )


def compare(
    folder: Path, found: dict[str, Any], asked: Experiment
) -> tuple[Experiment | None, list[str]]:
    """What the run was made with, and what is other now, a line each.

    Args:
        folder: the run's, for the message.
        found: its experiment as JSON; parts of the user's own are compared as that alone.
        asked: what is to go on.

    Raises:
        CheckpointError: it was made with another model, data or seed.
    """
    before: Experiment | None = None
    with contextlib.suppress(ConfigError):
        before = from_plain(Experiment, found)
    saved = found if before is None else to_plain(before)
    changes = list(diff(saved, asked))
    wrong = [change for change in changes if _is_fixed(change[0])]
    kinds = (saved["optimizer"]["kind"], type(asked.optimizer).__name__)
    if kinds[0] != kinds[1]:
        wrong.append(("optimizer", *kinds))
    if wrong:
        told = "; ".join(f"{path} is {_short(old)} there, {_short(new)} here"
                         for path, old, new in wrong[:4])  # fmt: skip
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise CheckpointError(
            f"{folder}: a run made otherwise: {told}{more}. Give this one another name "
            "(--name NAME), or move the old one aside and begin anew (--restart)."
        )
    return before, [f"{path} {_short(old)} -> {_short(new)}" for path, old, new in changes]


def tell_schedule(
    before: Experiment, now: Experiment, updates: int, step: int, say: Callable[[str], None]
) -> None:
    """What the learning rate does where a resumed run follows another schedule.

    Args:
        before: what the run was made with.
        now: how it goes on.
        updates: those made so far, by which the schedule counts.
        step: steps made so far, skipped updates among them.
        say: hears of it.
    """
    length = now.training.steps
    old: Any = before.optimizer.learning_rate(before.training.steps)
    new: Any = now.optimizer.learning_rate(length)
    if before.training.steps != length or float(old(updates)) != float(new(updates)):
        was, following, last = (
            rate(float(x)) for x in (old(max(updates, 1) - 1), new(updates), new(length - 1))
        )
        say(
            f"schedule   the learning rate of step {step:,} was {was}; by the schedule of "
            f"{length:,} steps it is {following} next, and {last} at the end"
        )


def _is_fixed(path: str) -> bool:
    return any(path == f or path.startswith((f + ".", f + "[")) for f in FIXED)


def _short(value: Any) -> str:
    text = value["kind"] if isinstance(value, dict) and "kind" in value else json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
