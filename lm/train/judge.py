"""What a run does about bad numbers: tells of them, writes out their data, goes back or ends."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from lm.data.loader import Loader
from lm.errors import CorpusError
from lm.train import bad_batches
from lm.train.guard import Finding, Guard, Watch, all_finite
from lm.train.guarded import RollBackError
from lm.train.loop import DivergedError
from lm.train.state import TrainState


class Judge:
    """Hears every step's numbers, once and in order, on every process alike."""

    def __init__(self, guard: Guard, folder: Path, steps: int, tell: Callable[[str], None]) -> None:
        """For a run of ``steps`` steps in ``folder``; ``tell`` hears a line of what is bad."""
        self.guard, self.folder, self.steps, self.tell = guard, folder, steps, tell
        self.watch = Watch(guard)
        self.loader: Loader | None = None
        self.due = False
        """Whether a save was put off, for nobody could say that the state is good."""

    def take_up(self, saved: Mapping[str, Any] | None, loader: Loader) -> None:
        """Go on from the counts of a checkpoint (None: from none), with this data.

        Raises:
            CheckpointError: they are damaged.
        """
        self.watch, self.loader, self.due = Watch(self.guard, saved), loader, False

    def position_before(self, step: int) -> int:
        """Sequences consumed before a step."""
        return 0 if self.loader is None else (step - 1) * self.loader.sequences

    def act_on(self, finding: Finding) -> None:
        """Tell of a step with bad numbers, write out its batch, and do as the guard says.

        Raises:
            DivergedError: there are too many of them.
            RollBackError: the run is to go back.
        """
        guard, watch = self.guard, self.watch
        done = "; its update was left out" if finding.skipped else ""
        self.tell(f"step {finding.step:,}: {finding.why}{done}{self._written(finding)}")
        if watch.in_a_row >= guard.stop_after_skips:
            raise DivergedError(
                f"step {finding.step:,}: {finding.why}, and the updates of {watch.in_a_row} steps "
                "in a row were left out for their numbers (guard.stop_after_skips). The "
                "checkpoints before are untouched, and the documents of these steps are in "
                f"{self.folder / bad_batches.FOLDER}. Lower optimizer.schedule.peak, lengthen its "
                "warm-up, clip the gradient (optimizer.clip) or leave that data out, and start "
                "again from the last checkpoint."
            )
        if finding.spike and guard.on_spike == "rollback":
            if watch.rollbacks >= guard.rollbacks:
                raise DivergedError(
                    f"step {finding.step:,}: {finding.why}, and the run has gone back "
                    f"{watch.rollbacks} times before (guard.rollbacks). Lower "
                    "optimizer.schedule.peak or lengthen its warm-up, and start again; or go on "
                    "with --on-spike skip."
                )
            raise RollBackError(finding.step)

    def doubtful(self, step: int, state: TrainState) -> bool:
        """Whether nobody can say that a state is good, for the last steps had bad numbers.

        One bad batch tells nothing of the state, if that is finite; two in a row do.  A save is put
        off until a step has good numbers.

        Raises:
            DivergedError: no step follows that could tell.
        """
        bad = self.watch.in_a_row
        self.due = bad > 1 or (bad == 1 and not all_finite(state.trainable))
        if self.due and step == self.steps:
            raise DivergedError(
                f"step {step:,}: the last of the run, and the updates of {bad} steps in a row were "
                "left out for their numbers. The state is not saved; the checkpoints before are "
                "untouched. Lower optimizer.schedule.peak, lengthen its warm-up or clip the "
                "gradient (optimizer.clip), and start again from the last one."
            )
        if self.due:
            self.tell(f"step {step:,}: not saved before a step with good numbers")
        return self.due

    def summary(self) -> str | None:
        """How many bad numbers the whole run had; None where it had none."""
        watch = self.watch
        told = {
            "skipped updates": watch.skips,
            "spikes": watch.spikes,
            "times gone back": watch.rollbacks,
        }
        counted = ", ".join(f"{number:,} {name}" for name, number in told.items() if number)
        return f"{counted} (see {self.folder / bad_batches.FOLDER})" if counted else None

    def _written(self, finding: Finding) -> str:
        """Where the batch of a step was written to; that it could not be is no reason to stop."""
        if self.loader is None or jax.process_index() != 0:
            return ""
        position = self.position_before(finding.step)
        try:
            path = bad_batches.write(self.folder, finding, self.loader, position)
        except (OSError, CorpusError) as error:
            return f". Its documents could not be written out ({error})"
        return f". Its documents: {path}"
