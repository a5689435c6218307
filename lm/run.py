"""A run on disk and on the devices: opened, compared, restored, trained, closed."""

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
from lm.checkpoint.restore import Restored, agreed_steps
from lm.checkpoint.store import Store, open_store
from lm.config import to_plain
from lm.data.loader import Loader, Stream
from lm.errors import ConfigError
from lm.evaluate.evaluator import Context, Evaluator
from lm.experiment import Experiment
from lm.generate.sampling import Sampler
from lm.generate.text import complete
from lm.opened import open_for_generation, writer_of
from lm.parallel import distributed
from lm.parallel.agree import Agreement
from lm.parallel.place import own_rows, to_global
from lm.resuming import compare, saved_experiment, tell_schedule
from lm.track.goodput import LIVES, Lives, account, read_lives
from lm.track.report import write_report
from lm.track.tracker import Fanout
from lm.train import loop
from lm.train.activity import Activity
from lm.train.guarded import Guarded, RollBackError
from lm.train.heartbeat import write_heartbeat
from lm.train.judge import Judge
from lm.train.loop import Job, Times
from lm.train.memory import bytes_on_device, compiled_bytes, device_memory, refuse_beyond
from lm.train.program import Program, parameter_count
from lm.train.state import TrainState
from lm.train.stopping import needed
from lm.train.throughput import memory_peak_gib, peak_flops, speed
from lm.train.ticker import Ticker
from lm.train.trace import Trace
from lm.train.watchdog import Watchdog

Say = Callable[[str], None]
SUMMARY = "summary.json"


class _GivenUpError(Exception):
    """An evaluation is not made to its end."""


class Run:
    """One run on disk and on the devices, from its first look at the folder to its last save."""

    def __init__(
        self,
        experiment: Experiment,
        program: Program,
        runs: Path,
        devices: Sequence[Any],
        began: float | None = None,
    ) -> None:
        """Shapes alone: nothing is read, written or allocated.

        Args:
            experiment: the run as one value.
            program: what it compiles.
            runs: where runs are kept.
            devices: where it runs.
            began: when this process did, by the monotonic clock; now if None.
        """
        self.experiment, self.folder = experiment, runs / experiment.name
        self.devices, self.program = devices, program
        self.parameters = parameter_count(self.program)
        self.flops = assemble.flops_per_token(experiment, self.program.placed)
        self.peak = peak_flops(devices)
        self.store: Store | None = None
        self.stream: Stream | None = None
        self.track: Fanout | None = None
        self.lock: Lock | None = None
        steps = experiment.training.steps
        self.judge = Judge(experiment.guard, self.folder, steps, self._tell)
        self.again = Agreement()
        """Whether some process has a save to repeat; asked once a step."""
        self.activity = Activity(began)
        self.lives: Lives | None = None
        """Where the time went; kept by process 0."""
        self.watchers: list[Ticker] = []
        self.stop_requested: Callable[[int], bool] = lambda _: False
        self.hurries = False
        """Whether an evaluation was given up for a stop, which is under way."""
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
        found = None if restart else saved_experiment(self.folder)
        if found is None:
            return []
        self.before, changes = compare(self.folder, found, self.experiment)
        return changes

    def claim(self) -> None:
        """Make the run's folder, and keep every other training out of it until ``close``.

        Raises:
            CheckpointError: another process trains this run.
            ResourceError: the folder cannot be written to.
        """
        if jax.process_index() == 0:
            self.lock = Lock(self.folder)

    def keep_watch(self) -> None:
        """Let others see that this process lives, and tell of steps that do not end."""
        rank, host = jax.process_index(), socket.gethostname()
        folder = distributed.heartbeats()
        if folder is not None:
            beat = functools.partial(write_heartbeat, folder, self.activity, rank=rank, host=host)
            self.watchers.append(Ticker("heartbeat", beat))
        watchdog = Watchdog(
            self.activity,
            floor=self.experiment.tracking.stuck_seconds,
            who=f"rank {rank} ({host}, process {os.getpid()})",
            file=self.folder / "stacks" / f"{rank}.txt",
        )
        self.watchers.append(Ticker("watchdog", watchdog.look))

    def stop_seconds(self) -> float:
        """What a stop would take now: to agree on it, to save, to end."""
        seconds = None if self.store is None else self.store.seconds
        size = sum(map(bytes_on_device, jax.tree.leaves(self.program.state)))
        laps = self.activity.laps
        return needed(seconds, size * len(jax.local_devices()), float(np.median(laps or [0.0])))

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
        given = (self.program.state, self.program.batch)
        if self.experiment.guard.on_spike == "skip":
            given = (*given, self.program.limits)
        compiled = self.program.step.lower(*given).compile()
        seconds = time.perf_counter() - began
        need, limit = compiled_bytes(compiled), device_memory(self.devices)
        if need is not None:
            refuse_beyond(need, self.devices, "the compiled step would")
            if self.experiment.guard.recompute_every is not None:
                twice = need + sum(map(bytes_on_device, jax.tree.leaves(self.program.state)))
                what = "the compiled step and the second state of guard.recompute_every would"
                refuse_beyond(twice, self.devices, what)
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
        self.activity("compile", 0)
        compiled = self.compile(say)
        self.activity("restore", 0)
        self._open_folder(restart=restart)
        self.store = open_store(self.folder / CHECKPOINTS, e.saving)
        rows = own_rows(self.program.batch.rows.sharding, e.training.sequences)
        self.loader = Loader(
            blend=data,
            objective=e.objective,
            sequences=e.training.sequences,
            seed=e.training.seed,
            rows=rows,
        )
        restored = self.store.restore_newest(self.program.state)
        state, start, batches = self._take_up(restored)
        for message in restored.messages if restored else ():
            say(message)
        resuming = f", resuming at step {start:,}" if restored else ""
        say(f"run        {self.folder}{resuming}")
        if self.before is not None and start > 0:
            tell_schedule(self.before, e, start - self.judge.watch.skips, start, say)
        self.tokenizer = ground.tokenizer

        def limits(step: int) -> jax.Array:
            return to_global(self.judge.watch.limits(step), self.program.limits)

        self.step = Guarded(
            compiled,
            self.program.placed.mesh,
            start=start,
            limits=limits if e.guard.on_spike == "skip" else None,
            recompute_every=e.guard.recompute_every,
        )
        job = Job(
            step=self.step,
            steps=e.training.steps,
            batches=batches,
            place=lambda batch: to_global(batch, self.program.batch),
            track=self._track,
            evaluate_at=_every(e.evaluation.every),
            evaluate=lambda step, params: self._evaluate(step, params, evaluators),
            save_at=self._save_at,
            save=self._save,
            stop_requested=lambda _: False,
            doing=self.activity,
        )
        if profiled is not None:
            job = job._replace(trace=Trace(self.folder / "profile", profiled, say))
        return job, state

    def _take_up(
        self, restored: Restored | None, beyond: int | None = None
    ) -> tuple[TrainState, int, Stream]:
        """State, step, data, trackers and counts as they were at a checkpoint or the beginning.

        Args:
            restored: the checkpoint; None begins.
            beyond: go on with this sample of the data rather than where the checkpoint stood.
        """
        e = self.experiment
        if restored is None:
            state, start = self.program.init(jax.random.key(e.training.seed)), 0
            told: Mapping[str, Any] = {"position": 0}
        else:
            state, start, told = restored.state, restored.step, restored.data
        position = int(told["position"])
        if beyond is None:
            skipped = tuple((first, stop) for first, stop in told.get("skipped", ()))
        else:
            # Those of this life too: going back twice to one checkpoint, both are left out.
            skipped = (*self.loader.skipped, (int(self.loader.numbers(position)[0]), beyond))
        self.loader = replace(self.loader, skipped=skipped)
        self.judge.take_up(told.get("guard"), self.loader)
        self.stream = self.loader.stream(position)
        if jax.process_index() == 0:
            self.track = e.tracking.build(
                self.folder, restored_step=start, total_steps=e.training.steps
            )
            self._begin_life(start)
        return state, start, self.stream

    def _begin_life(self, restored: int) -> None:
        """From here on what was made beyond a step is lost time."""
        if self.lives is None:
            began = time.time() - (self.activity.clock() - self.activity.began)
        else:  # gone back; the time since the life before counts as that of a restart
            self.lives.close()
            self.activity.take()
            began = time.time()
        self.lives = Lives(self.folder / LIVES, restored=restored, began=began)

    def train(self, job: Job, state: TrainState) -> tuple[TrainState, int]:
        """The loop; where a spike asks for it, goes back and on beyond the spike's data.

        Raises:
            DivergedError: numbers so bad that it makes no sense to go on.
            CorruptionError: a step computed twice gave two results.
        """
        self.stop_requested = job.stop_requested
        while True:
            try:
                return loop.run(job, state)
            except RollBackError as asked:
                spiked = asked.step
            state, batches = self._go_back(spiked)
            job = job._replace(batches=batches)

    def _go_back(self, spiked: int) -> tuple[TrainState, Stream]:
        """The state of the newest checkpoint, and all else with it; the data goes on."""
        if self.store is None or self.stream is None:
            raise ValueError("a run goes back only after it has begun")
        self._account(spiked)
        self.activity("restore", spiked)
        self.store.settle()
        self.stream.close()
        if self.track is not None:
            self.track.close()
        beyond = int(self.loader.numbers(self.judge.position_before(spiked))[-1]) + 1
        rollbacks, spikes = self.judge.watch.rollbacks + 1, self.judge.watch.spikes
        self.step.go_back(0)
        restored = self.store.restore_newest(self.program.state)
        state, start, batches = self._take_up(restored, beyond)
        self.step.go_back(start)
        self.judge.watch.rollbacks, self.judge.watch.spikes = rollbacks, spikes
        self._tell(
            f"spike      back at step {start:,}; samples {self.loader.skipped[-1][0]:,} to "
            f"{beyond - 1:,} of the data are left out"
        )
        return state, batches

    def _tell(self, text: str) -> None:
        if self.track is not None:
            self.track.say(text)

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

    def finish_saving(self, step: int) -> None:
        """Wait until the last save is whole; one that failed is tried again.

        Raises:
            CheckpointError: it cannot be saved; the ones before it are untouched.
        """
        if self.store is not None:
            self.store.wait()
        finished = step >= self.experiment.training.steps
        if finished:  # a launcher starts again what ends in another phase
            self.activity("done", step)
        self._account(step, finished=finished)
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
            "goodput": account(read_lives(self.folder / LIVES)).parts,
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
            for live in (self.lives, self.track, self.store, self.stream, *self.watchers):
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
            between=self._between_batches,
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
        watch = self.judge.watch
        finding = watch.hear(step, values)
        metrics |= {"train/skips": watch.skips, "train/spikes": watch.spikes}
        metrics |= self._account(step)
        self.last = metrics
        if self.track is not None:
            self.track(step, metrics)
        if finding is not None:
            self.judge.act_on(finding)

    def _evaluate(self, step: int, params: Params, evaluators: Mapping[str, Evaluator]) -> bool:
        """Evaluate; whether that was given up, for a stop was asked meanwhile."""
        try:
            found = {name: evaluator(params) for name, evaluator in evaluators.items()}
        except _GivenUpError:
            self.hurries = True
            return True
        for name, figures in found.items():
            self.held_out[name] = figures
            if self.track is not None:
                self.track(step, {f"eval/{name}/{key}": v for key, v in figures.items()})
        self._account(step)
        return False

    def _between_batches(self) -> None:
        """Give an evaluation up where a stop is asked; the one that follows the save ends."""
        if not self.hurries and self.stop_requested(self.activity.now.step):
            raise _GivenUpError

    def _account(self, step: int, *, finished: bool = False) -> dict[str, float]:
        """Keep where the time went until now; the shares so far, as metrics."""
        if self.lives is None:
            return {}
        self.lives.spend(step, self.activity.take(), time=time.time(), finished=finished)
        return self.lives.shares()

    def _save_at(self, step: int) -> bool:
        """Whether to save after this step: it is its turn, or a save was put off or failed."""
        due = self.again(self.store is not None and self.store.due())
        return due or self.judge.due or step % self.experiment.saving.every == 0

    def _save(self, step: int, state: TrainState, position: int) -> None:
        if self.track is not None:
            self.track.flush()
        if self.judge.doubtful(step, state) or self.store is None:
            return
        tokens = step * self.experiment.training.tokens_per_step
        self.store.save(
            step,
            state,
            data={
                "position": position,
                "skipped": self.loader.skipped,
                "guard": self.judge.watch.saved(),
            },
            experiment=to_plain(self.experiment),
            record=make_record(step=step, tokens=tokens, parameters=self.parameters),
            tokenizer=self.tokenizer,
        )
        self._account(step)


def _write(path: Path, value: Any) -> None:
    """A JSON file of a run.

    Raises:
        ResourceError: the run's folder takes nothing.
    """
    try:
        write_json(path, value)
    except OSError as error:
        raise cannot_write(path.parent, error) from error


def _every(interval: int | None) -> Callable[[int], bool]:
    return lambda step: interval is not None and step % interval == 0
