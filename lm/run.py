"""A run on disk and on the devices: opened, compared, restored, trained, closed."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm import assemble
from lm.batch import Params
from lm.checkpoint.layout import (
    CHECKPOINTS,
    EXPERIMENT,
    load_json,
    steps,
    write_json,
)
from lm.checkpoint.lock import LOCK, Lock, cannot_write
from lm.checkpoint.record import make_record
from lm.checkpoint.restore import agreed_steps
from lm.checkpoint.store import Store, open_store
from lm.config import diff, from_plain, to_plain
from lm.data.loader import Loader, Stream
from lm.errors import CheckpointError, ConfigError
from lm.evaluate.evaluator import Context, Evaluator
from lm.experiment import Experiment
from lm.generate.sampling import Sampler
from lm.generate.text import complete
from lm.opened import open_for_generation, writer_of
from lm.parallel.place import own_rows, to_global
from lm.track.format import rate
from lm.track.report import write_report
from lm.track.tracker import Fanout
from lm.train.loop import Job, Times
from lm.train.memory import bytes_on_device, compiled_bytes, device_memory, refuse_beyond
from lm.train.program import Program, parameter_count
from lm.train.state import TrainState
from lm.train.throughput import memory_peak_gib, peak_flops, speed

Say = Callable[[str], None]
SUMMARY = "summary.json"
AGREE_EVERY = 8
"""Steps between two looks of all processes at whether one of them was asked to stop."""
FIXED = ("model", "objective", "data", "tokenizer", "prepare", "training.seed",
         "training.sequences", "training.length")  # fmt: skip
"""What a resumed run must have in common with the run it resumes."""


class Run:
    """One run on disk and on the devices, from its first look at the folder to its last save."""

    def __init__(
        self, experiment: Experiment, program: Program, runs: Path, devices: Sequence[Any]
    ) -> None:
        """Shapes alone: nothing is read, written or allocated."""
        self.experiment, self.folder = experiment, runs / experiment.name
        self.devices, self.program = devices, program
        self.parameters = parameter_count(self.program)
        self.flops = assemble.flops_per_token(experiment, self.program.placed)
        self.peak = peak_flops(devices)
        self.store: Store | None = None
        self.stream: Stream | None = None
        self.track: Fanout | None = None
        self.lock: Lock | None = None
        self.before: Experiment | None = None
        """What the run on disk was made with, where there is one."""
        self.last: dict[str, float | None] = {}
        self.held_out: dict[str, dict[str, float]] = {}
        self.rates: list[float] = []

    def check(self, *, restart: bool) -> list[str]:
        """Compare with the run that is there already; returns what changed, a line each.

        Raises:
            CheckpointError: it was made with another model, data or seed, and no restart is asked.
        """
        found = None if restart else self._found()
        if found is None:
            return []
        with contextlib.suppress(ConfigError):  # parts of the user's own are compared as JSON
            self.before = from_plain(Experiment, found)
        saved = found if self.before is None else to_plain(self.before)
        changes = list(diff(saved, self.experiment))
        wrong = [c for c in changes if _is_fixed(c[0])]
        kinds = (saved["optimizer"]["kind"], type(self.experiment.optimizer).__name__)
        if kinds[0] != kinds[1]:
            wrong.append(("optimizer", *kinds))
        if wrong:
            told = "; ".join(f"{path} is {_short(old)} there, {_short(new)} here"
                             for path, old, new in wrong[:4])  # fmt: skip
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise CheckpointError(
                f"{self.folder}: a run made otherwise: {told}{more}. Give this one another name "
                "(--name NAME), or move the old one aside and begin anew (--restart)."
            )
        return [f"{path} {_short(old)} -> {_short(new)}" for path, old, new in changes]

    def _found(self) -> dict[str, Any] | None:
        """The experiment of the run on disk, as JSON; None where there is no run.

        Raises:
            CheckpointError: files that are no run's, or a run whose experiment is unreadable.
        """
        made = steps(self.folder)
        for folder in (self.folder, *reversed(made)):
            if (folder / EXPERIMENT).exists():
                found = load_json(folder, EXPERIMENT)
                if isinstance(found.get("optimizer"), dict) and "kind" in found["optimizer"]:
                    return found
                raise CheckpointError(
                    f"{folder / EXPERIMENT}: not the experiment of a run. Give this run another "
                    "name (--name NAME), or move the folder aside and begin anew (--restart)."
                )
        try:
            others = {entry.name for entry in self.folder.iterdir()} - {LOCK}
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        if others:
            raise CheckpointError(
                f"{self.folder}: holds {', '.join(sorted(others)[:4])}, and is no run. Give this "
                "run another name (--name NAME), or keep runs elsewhere (--runs DIR)."
            )
        return None

    def claim(self) -> None:
        """Make the run's folder, and keep every other training out of it until ``close``.

        Raises:
            CheckpointError: another process trains this run.
            ResourceError: the folder cannot be written to.
        """
        if jax.process_index() == 0:
            self.lock = Lock(self.folder)

    def check_memory(self) -> None:
        """Refuse a state that cannot fit, before anything is allocated.

        Raises:
            ResourceError: with what is needed and what there is.
        """
        state = sum(map(bytes_on_device, jax.tree.leaves(self.program.state)))
        gradients = sum(map(bytes_on_device, jax.tree.leaves(self.program.state.trainable)))
        what = "parameters, gradients and optimizer state alone"
        refuse_beyond(state + gradients, self.devices, what)

    def finished(self) -> int | None:
        """The last step of the run on disk, if that is all that is asked for; else None.

        Raises:
            CheckpointError: the hosts do not see the same checkpoints.
        """
        made = agreed_steps(self.folder)
        last = int(made[-1].name) if made else 0
        return last if last >= self.experiment.training.steps else None

    def check_profile(self, profiled: tuple[int, int], *, restart: bool) -> None:
        """Refuse to trace steps that will not be made.

        Raises:
            ConfigError: they lie before or behind this training.
        """
        made, last = steps(self.folder), self.experiment.training.steps
        start = int(made[-1].name) if made and not restart else 0
        if not start < profiled[0] <= profiled[1] <= last:
            raise ConfigError(
                f"--profile {profiled[0]}:{profiled[1]}: this training makes steps {start + 1:,} "
                f"to {last:,}. Name steps among these."
            )

    def compile(self, say: Say) -> Any:
        """The compiled step.

        Raises:
            ResourceError: it needs more memory than a device has.
        """
        began = time.perf_counter()
        compiled = self.program.step.lower(self.program.state, self.program.batch).compile()
        seconds = time.perf_counter() - began
        need, limit = compiled_bytes(compiled), device_memory(self.devices)
        if need is not None:
            refuse_beyond(need, self.devices, "the compiled step would")
            of = f" of {limit / 2**30:.1f}" if limit else ""
            told = f"{need / 2**30:.2f}{of} GiB a device, compiled in {seconds:.1f} s"
            say(f"memory     {told}")
        return compiled

    def begin(
        self,
        ground: assemble.Ground,
        *,
        restart: bool,
        say: Say,
        profiled: tuple[int, int] | None = None,
    ) -> tuple[Job, TrainState]:
        """Open the folder, restore or make the state, and hand out the loop's job.

        Args:
            ground: tokenizer, data and held-out set.
            restart: move a run that is there aside.
            say: hears of what is done, a line each.
            profiled: the first and the last step to trace.

        Raises:
            CheckpointError, ResourceError, CorpusError: what is there cannot be used.
        """
        e = self.experiment
        data = ground.data.build(e.training.length, ground.tokenizer.digest)
        for source in data.sources:
            facts = source.tokenizer
            if facts is not None:
                assemble.check_vocabulary(e.model.vocab_size, facts.vocab_size, source.name)
        evaluators = self._evaluators(ground)
        compiled = self.compile(say)
        self._open_folder(restart=restart)
        self.store = open_store(self.folder / CHECKPOINTS, e.saving)
        restored = self.store.restore_newest(self.program.state)
        position, start = 0, 0
        if restored is not None:
            for message in restored.messages:
                say(message)
            state, start = restored.state, restored.step
            position = int(restored.data["position"])
            say(f"run        {self.folder}, resuming at step {start:,}")
            self._tell_schedule(start, say)
        else:
            state = self.program.init(jax.random.key(e.training.seed))
            say(f"run        {self.folder}")
        if jax.process_index() == 0:
            self.track = e.tracking.build(
                self.folder, restored_step=start, total_steps=e.training.steps
            )
        rows = own_rows(self.program.batch.rows.sharding, e.training.sequences)
        skipped = tuple(tuple(s) for s in restored.data.get("skipped", ())) if restored else ()
        loader = Loader(
            blend=data,
            objective=e.objective,
            sequences=e.training.sequences,
            seed=e.training.seed,
            rows=rows,
            skipped=skipped,
        )
        self.stream = loader.stream(position)
        self.tokenizer = ground.tokenizer
        self.skipped = skipped
        job = Job(
            step=compiled,
            steps=e.training.steps,
            batches=self.stream,
            place=lambda batch: to_global(batch, self.program.batch),
            track=self._track,
            evaluate_at=_every(e.evaluation.every),
            evaluate=lambda step, params: self._evaluate(step, params, evaluators),
            save_at=self._save_at,
            save=self._save,
            stop_requested=lambda _: False,
        )
        if profiled is not None:
            job = job._replace(trace=Trace(self.folder / "profile", profiled, say))
        return job, state

    def _tell_schedule(self, step: int, say: Say) -> None:
        """What the learning rate does where a resumed run follows another schedule."""
        now, before = self.experiment, self.before
        if before is None or step < 1:
            return
        length = now.training.steps
        old: Any = before.optimizer.learning_rate(before.training.steps)
        new: Any = now.optimizer.learning_rate(length)
        if before.training.steps != length or float(old(step)) != float(new(step)):
            was, following, last = (
                rate(float(x)) for x in (old(step - 1), new(step), new(length - 1))
            )
            say(
                f"schedule   the learning rate of step {step:,} was {was}; by the schedule of "
                f"{length:,} steps it is {following} next, and {last} at the end"
            )

    def show_samples(self, say: Say) -> None:
        """Write the samples that the experiment asks for, and keep them beside the run."""
        wanted = self.experiment.evaluation.samples
        if wanted is None or jax.process_count() > 1:
            return
        opened = open_for_generation(self.folder, self.devices[:1])
        prompts = [p for p in wanted.prompts for _ in range(wanted.each)]
        sampler = Sampler(temperature=wanted.temperature, top_p=wanted.top_p)
        texts = complete(
            writer_of(opened),
            prompts,
            max_tokens=wanted.tokens,
            sampler=sampler,
            seed=wanted.seed,
        )
        for i, made in enumerate(texts):
            say(f"\n--- sample {i + 1} of {len(texts)} ---\n{made.prompt}{made.text}\n")
        kept = [{"prompt": made.prompt, "text": made.text} for made in texts]
        _write(self.folder / "samples.json", kept)

    def finish_saving(self) -> None:
        """Wait until the last save is whole; one that failed is tried again.

        Raises:
            CheckpointError: it cannot be saved; the ones before it are untouched.
        """
        if self.store is not None:
            self.store.wait()
        if self.track is not None:
            self.track.close()

    def figures(self, step: int) -> dict[str, Any]:
        """The run in figures, as ``--json`` gives them."""
        made, held_out = steps(self.folder), self.held_out
        fast = float(np.median(self.rates)) if self.rates else None
        if fast is None and (self.folder / SUMMARY).is_file():  # no step was made: as it was told
            told = load_json(self.folder, SUMMARY)
            if told.get("step") == step:
                held_out, fast = told.get("held_out", {}), told.get("tokens_per_second")
        return {
            "run": str(self.folder),
            "step": step,
            "finished": step >= self.experiment.training.steps,
            "tokens": step * self.experiment.training.tokens_per_step,
            "tokens_per_second": fast,
            "parameters": self.parameters,
            "held_out": held_out,
            "checkpoint": str(made[-1]) if made else None,
        }

    def report(self, step: int) -> Path | None:
        """Draw the report; None on all processes but the first."""
        if jax.process_index() != 0:
            return None
        _write(self.folder / SUMMARY, self.figures(step))
        return write_report(self.folder)

    def close(self) -> None:
        """Finish the last save and let go of files, threads and the folder."""
        with contextlib.ExitStack() as last:
            if self.lock is not None:
                last.callback(self.lock.release)
            for live in (self.track, self.store, self.stream):
                if live is not None:
                    last.callback(live.close)

    def _evaluators(self, ground: assemble.Ground) -> dict[str, Evaluator]:
        e = self.experiment
        context = Context(
            placed=self.program.placed,
            tokenizer=ground.tokenizer,
            rows=e.evaluation.sequences or e.training.sequences,
            length=e.training.length,
            held_out=ground.held_out,
        )
        usable = [x for x in e.evaluation.evaluators if x.data or ground.held_out]
        return {x.name: x.build(context) for x in usable}

    def _open_folder(self, *, restart: bool) -> None:
        if self.lock is None:
            return
        try:
            if restart and any(entry.name != LOCK for entry in self.folder.iterdir()):
                now = time.strftime("%Y%m%d-%H%M%S")
                aside = self.folder.with_name(f"{self.folder.name}.{now}")
                os.replace(self.folder, aside)
                self.lock.folder = aside
                held, self.lock = self.lock, Lock(self.folder)
                held.release()
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        _write(self.folder / EXPERIMENT, to_plain(self.experiment))

    def _track(self, step: int, values: Mapping[str, float], times: Times) -> None:
        e = self.experiment
        fast = speed(e.training.tokens_per_step, times.step, self.flops, self.peak)
        metrics: dict[str, float | None] = {f"train/{n}": v for n, v in values.items()}
        metrics["train/tokens"] = step * e.training.tokens_per_step
        metrics |= {"time/step_seconds": times.step, "data/wait_seconds": times.data_wait, **fast}
        if self.store is not None and self.store.failed:
            metrics["checkpoint/failed"] = self.store.failed
        metrics["memory/peak_gib"] = memory_peak_gib(self.devices[0])
        self.rates.append(e.training.tokens_per_step / times.step)
        self.last = metrics
        if self.track is not None:
            self.track(step, metrics)

    def _evaluate(self, step: int, params: Params, evaluators: Mapping[str, Any]) -> None:
        for name, evaluator in evaluators.items():
            figures = evaluator(params)
            self.held_out[name] = figures
            if self.track is not None:
                self.track(step, {f"eval/{name}/{key}": v for key, v in figures.items()})

    def _save_at(self, step: int) -> bool:
        """Whether to save after this step: it is its turn, or a save failed and is due again."""
        due = self.store is not None and self.store.due()
        return step % self.experiment.saving.every == 0 or agreed(due, step)

    def _save(self, step: int, state: TrainState, position: int) -> None:
        if self.track is not None:
            self.track.flush()
        if self.store is None:
            return
        tokens = step * self.experiment.training.tokens_per_step
        self.store.save(
            step,
            state,
            data={"position": position, "skipped": self.skipped},
            experiment=to_plain(self.experiment),
            record=make_record(step=step, tokens=tokens, parameters=self.parameters),
            tokenizer=self.tokenizer,
        )


def agreed(asked: bool, step: int) -> bool:  # noqa: FBT001
    """Whether any process was asked to stop; several processes look together, every few steps."""
    if jax.process_count() == 1:
        return asked
    if step % AGREE_EVERY:
        return False
    with jax.transfer_guard("allow"):
        return bool(multihost_utils.process_allgather(np.asarray(asked)).any())


def _write(path: Path, value: Any) -> None:
    """A JSON file of a run.

    Raises:
        ResourceError: the run's folder takes nothing.
    """
    try:
        write_json(path, value)
    except OSError as error:
        raise cannot_write(path.parent, error) from error


class Trace:
    """Called before each step: traces some of them with JAX's profiler."""

    def __init__(self, folder: Path, steps: tuple[int, int], say: Say) -> None:
        self.folder, self.steps, self.say = folder, steps, say
        self.on = False

    def __call__(self, step: int, state: Any) -> None:
        """Step ``step`` comes next; ``state`` is that of the step before, perhaps in flight."""
        first, last = self.steps
        if step == first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.folder)
            self.on = True
        elif self.on and step > last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self.on = False
            self.say(f"profile    steps {first:,} to {last:,} in {self.folder}")


def _every(interval: int | None) -> Callable[[int], bool]:
    return lambda step: interval is not None and step % interval == 0


def _is_fixed(path: str) -> bool:
    return any(path == f or path.startswith((f + ".", f + "[")) for f in FIXED)


def _short(value: Any) -> str:
    text = value["kind"] if isinstance(value, dict) and "kind" in value else json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
