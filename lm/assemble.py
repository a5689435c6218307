"""Experiment -> live things: the only place that knows everybody.

``program`` needs shapes alone and serves planning as well as training; ``prepared`` and ``Run``
touch data and disk.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm.batch import Params
from lm.checkpoint.layout import (
    CHECKPOINTS,
    EXPERIMENT,
    RECORD,
    TOKENIZER,
    load_json,
    newest,
    steps,
)
from lm.checkpoint.record import make_record
from lm.checkpoint.restore import restore_params
from lm.checkpoint.store import Store, open_store
from lm.config import diff, from_plain, to_plain
from lm.corpus.prepare import prepare
from lm.data.loader import Loader
from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.errors import CheckpointError, ConfigError, ResourceError
from lm.evaluate.evaluator import Context
from lm.experiment import Experiment
from lm.generate.sampling import Sampler
from lm.generate.text import Writer, complete
from lm.models.decoder import Decoder, windowed
from lm.models.flops import Flops, training_flops_per_token
from lm.models.model import Model
from lm.parallel.mesh import Mesh, Parallel
from lm.parallel.place import own_rows, to_global
from lm.shards import read_manifest
from lm.tokenizers.load import load_tokenizer
from lm.tokenizers.tokenizer import Tokenizer
from lm.track.report import write_report
from lm.track.tracker import Fanout
from lm.train.loop import Job, Times
from lm.train.memory import bytes_on_device, compiled_bytes, device_memory, refuse_beyond
from lm.train.placed import Placed, place_model
from lm.train.program import Program, build_program, parameter_count
from lm.train.state import TrainState
from lm.train.throughput import memory_peak_gib, peak_flops, speed

Say = Callable[[str], None]
AGREE_EVERY = 8
"""Steps between two looks of all processes at whether one of them was asked to stop."""
VOCABULARY_ROUNDING = 1024
"""A model's vocabulary may be rounded up to a multiple of this, so that it can be sharded."""
FIXED = ("model", "objective", "data", "tokenizer", "prepare", "training.seed",
         "training.sequences", "training.length")  # fmt: skip
"""What a resumed run must have in common with the run it resumes."""


class Ground(NamedTuple):
    """What a run stands on: a tokenizer, training data, a held-out set."""

    tokenizer: Tokenizer
    data: Mixture
    held_out: Shards | None


def program(experiment: Experiment, devices: Sequence[Any]) -> Program:
    """What the run compiles on these devices, which may be elsewhere; by shapes alone.

    Raises:
        ShardingError, ConfigError: parts that do not fit each other or the devices.
    """
    e = experiment
    placed = place_model(e.model, e.execution, e.parallel, devices)
    return build_program(placed, e.objective, e.optimizer, e.training)


def flops_per_token(experiment: Experiment, placed: Placed) -> Flops:
    """The operations of one token in training."""
    leaves = placed.model.leaves
    return training_flops_per_token(
        experiment.model, leaves, placed.params, experiment.training.length
    )


def ground(experiment: Experiment, say: Say = lambda _: None) -> Ground:
    """Prepare the data if the experiment says so, and find what it stands on.

    Raises:
        CorpusError, ConfigError: data or tokenizer that is missing or does not fit the model.
    """
    e, folder = experiment, None
    if e.prepare is not None:
        made = prepare(e.prepare, say)
        folder = made.folder
    if e.tokenizer is not None:
        tokenizer = e.tokenizer.build()
    else:
        tokenizer = load_tokenizer(folder / TOKENIZER) if folder else _impossible()
    data = e.data
    if data is None:
        whole = Shards(path=str(folder) if folder else _impossible())
        data = Mixture(sources=(Weighted(source=whole),))
    check_vocabulary(e.model.vocab_size, tokenizer.vocab_size, "training")
    return Ground(tokenizer, data, _held_out(data, folder))


def check_vocabulary(model: int, tokenizer: int, where: str) -> None:
    """Refuse a tokenizer that is not the model's.

    Raises:
        ConfigError: more ids than the model has, or far fewer.
    """
    rounded = -(-tokenizer // VOCABULARY_ROUNDING) * VOCABULARY_ROUNDING
    if not tokenizer <= model <= rounded:
        raise ConfigError(
            f"{where}: the tokenizer has {tokenizer:,} ids and the model's vocab_size is "
            f"{model:,}. Set model.vocab_size to {tokenizer} (rounding up to at most {rounded} is "
            "fine), or name the tokenizer that belongs to the model."
        )


def _held_out(data: Mixture, folder: Path | None) -> Shards | None:
    sources = (part.source for part in data.sources)
    paths = [folder, *(Path(s.path) for s in sources if isinstance(s, Shards))]
    for path in paths:
        if path is not None and "held_out" in read_manifest(path).splits:
            return Shards(path=str(path), split="held_out")
    return None


def _impossible() -> Any:
    raise ConfigError("tokenizer and data: None, and there is no prepare= that would make them.")


class Run:
    """One run on disk and on the devices, from its first look at the folder to its last save."""

    def __init__(self, experiment: Experiment, runs: Path, devices: Sequence[Any]) -> None:
        """Shapes alone: nothing is read, written or allocated."""
        self.experiment, self.folder = experiment, runs / experiment.name
        self.devices = devices
        self.program = program(experiment, devices)
        self.parameters = parameter_count(self.program)
        self.flops = flops_per_token(experiment, self.program.placed)
        self.peak = peak_flops(devices)
        self.store: Store | None = None
        self.track: Fanout | None = None
        self.last: dict[str, float | None] = {}
        self.held_out: dict[str, dict[str, float]] = {}
        self.rates: list[float] = []

    def check(self, *, restart: bool) -> list[str]:
        """Compare with the run that is there already; returns what changed, a line each.

        Raises:
            CheckpointError: it was made with another model, data or seed, and no restart is asked.
        """
        file = self.folder / EXPERIMENT
        if restart or not file.exists():
            return []
        saved = from_plain(Experiment, load_json(self.folder, EXPERIMENT), str(file))
        changes = list(diff(saved, self.experiment))
        wrong = [c for c in changes if _is_fixed(c[0])]
        kinds = (type(saved.optimizer).__name__, type(self.experiment.optimizer).__name__)
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

    def check_memory(self) -> None:
        """Refuse a state that cannot fit, before anything is allocated.

        Raises:
            ResourceError: with what is needed and what there is.
        """
        state = sum(map(bytes_on_device, jax.tree.leaves(self.program.state)))
        gradients = sum(map(bytes_on_device, jax.tree.leaves(self.program.state.trainable)))
        what = "parameters, gradients and optimizer state alone"
        refuse_beyond(state + gradients, self.devices, what)

    def finished(self) -> bool:
        """Whether the run on disk has made all its steps."""
        made = steps(self.folder)
        return bool(made) and int(made[-1].name) >= self.experiment.training.steps

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

    def begin(self, ground: Ground, *, restart: bool, say: Say) -> tuple[Job, TrainState]:
        """Open the folder, restore or make the state, and hand out the loop's job.

        Raises:
            CheckpointError, ResourceError, CorpusError: what is there cannot be used.
        """
        e = self.experiment
        data = ground.data.build(e.training.length, ground.tokenizer.digest)
        for source in data.sources:
            facts = source.tokenizer
            if facts is not None:
                check_vocabulary(e.model.vocab_size, facts.vocab_size, source.name)
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
        else:
            state = self.program.init(jax.random.key(e.training.seed))
            say(f"run        {self.folder}")
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
            save_at=_every(e.saving.every),
            save=self._save,
            stop_requested=lambda _: False,
        )
        return job, state

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
        write_json_text(self.folder / "samples.json", kept)

    def figures(self, step: int) -> dict[str, Any]:
        """The run in figures, as ``--json`` gives them."""
        made = steps(self.folder)
        return {
            "run": str(self.folder),
            "step": step,
            "finished": step >= self.experiment.training.steps,
            "tokens": step * self.experiment.training.tokens_per_step,
            "tokens_per_second": float(np.median(self.rates)) if self.rates else None,
            "parameters": self.parameters,
            "held_out": self.held_out,
            "checkpoint": str(made[-1]) if made else None,
        }

    def report(self, step: int) -> Path | None:
        """Draw the report; None on all processes but the first."""
        if jax.process_index() != 0:
            return None
        write_json_text(self.folder / "summary.json", self.figures(step))
        return write_report(self.folder)

    def close(self) -> None:
        """Finish the last save and let go of files and threads."""
        for live in (getattr(self, "stream", None), self.store, self.track):
            if live is not None:
                live.close()

    def _evaluators(self, ground: Ground) -> dict[str, Callable[[Params], dict[str, float]]]:
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
        if jax.process_index() != 0:
            return
        try:
            if restart and self.folder.exists():
                aside = self.folder.with_name(
                    f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}"
                )
                os.replace(self.folder, aside)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json_text(self.folder / EXPERIMENT, to_plain(self.experiment))
        except OSError as error:
            raise ResourceError(
                f"{self.folder}: the run's folder cannot be written ({error.strerror}). Free "
                "space, mend its permissions, or put runs elsewhere with --runs DIR."
            ) from error

    def _track(self, step: int, values: Mapping[str, float], times: Times) -> None:
        e = self.experiment
        fast = speed(e.training.tokens_per_step, times.step, self.flops, self.peak)
        metrics: dict[str, float | None] = {f"train/{n}": v for n, v in values.items()}
        metrics["train/tokens"] = step * e.training.tokens_per_step
        metrics |= {"time/step_seconds": times.step, "data/wait_seconds": times.data_wait, **fast}
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


class Opened(NamedTuple):
    """A checkpoint on a mesh, ready to be scored or exported."""

    folder: Path
    experiment: Experiment
    record: dict[str, Any]
    tokenizer: Tokenizer
    placed: Placed
    params: Params

    @property
    def step(self) -> int:
        """Updates that made it."""
        return int(self.record["step"])

    @property
    def model(self) -> Model:
        """The functions of the model."""
        return self.placed.model

    @property
    def context(self) -> int:
        """Tokens that a prompt may have: the positions of the model, else the trained length."""
        return self.experiment.model.positions or self.experiment.training.length


def open_checkpoint(
    path: Path,
    devices: Sequence[Any],
    *,
    parallel: Parallel | None = None,
    change: Callable[[Decoder], Decoder] = lambda model: model,
) -> Opened:
    """The parameters of a checkpoint, verified; the optimizer's state is not read.

    Args:
        path: a STEP folder, or a run (its newest whole one).
        devices: where to put the parameters.
        parallel: the mesh; None: fsdp over all devices.
        change: what to change of the model; its parameters must stay the same.

    Raises:
        CheckpointError: not a checkpoint, or a damaged one.
    """
    folder = newest(path)
    experiment = from_plain(Experiment, load_json(folder, EXPERIMENT), str(folder / EXPERIMENT))
    record = load_json(folder, RECORD)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    placed = place_model(
        change(experiment.model), experiment.execution, parallel or Parallel(), devices
    )
    params = restore_params(folder, placed.params)
    return Opened(folder, experiment, record, tokenizer, placed, params)


def open_for_generation(path: Path, devices: Sequence[Any]) -> Opened:
    """A checkpoint laid out for generation: weights whole but for ``tensor``, never gathered.

    Rotary models have no last position; beyond the rows they were trained on they look back no
    further than those.
    """
    folder = newest(path)
    experiment = from_plain(Experiment, load_json(folder, EXPERIMENT), str(folder / EXPERIMENT))
    length = experiment.training.length
    ways = _tensor_ways(experiment.model, len(devices))
    mesh = Parallel(mesh=Mesh(fsdp=1, tensor=ways))
    near = experiment.model.positions is None
    return open_checkpoint(
        folder,
        devices[:ways],
        parallel=mesh,
        change=lambda model: windowed(model, length) if near else model,
    )


def writer_of(opened: Opened) -> Writer:
    """What continues texts."""
    positions = opened.experiment.model.positions
    return Writer(opened.model, opened.params, opened.tokenizer, positions)


def check_prompts(opened: Opened, prompts: Sequence[str]) -> None:
    """Refuse prompts that the model has never been trained to read in whole.

    Raises:
        ConfigError: one that is longer than the context.
    """
    for number, prompt in enumerate(prompts):
        tokens = len(opened.tokenizer.encode(prompt)) + 1
        if tokens > opened.context:
            raise ConfigError(
                f"prompt {number + 1}: {tokens:,} tokens with BOS, and this model's context is "
                f"{opened.context:,}. Shorten it by {tokens - opened.context:,} tokens, or train "
                "with a longer training.length."
            )


def agreed(asked: bool, step: int) -> bool:  # noqa: FBT001
    """Whether any process was asked to stop; several processes look together, every few steps."""
    if jax.process_count() == 1:
        return asked
    if step % AGREE_EVERY:
        return False
    with jax.transfer_guard("allow"):
        return bool(multihost_utils.process_allgather(np.asarray(asked)).any())


def write_json_text(path: Path, value: Any) -> None:
    """A JSON file in one step."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def with_name(experiment: Experiment, name: str | None) -> Experiment:
    """The same experiment under another name."""
    return experiment if name is None else replace(experiment, name=name)


def _tensor_ways(model: Decoder, devices: int) -> int:
    """The most devices over which every sharded dimension of a decoder divides."""
    sizes = [model.vocab_size]
    for block in model.blocks:
        sizes += [block.mixer.num_heads, block.mixer.num_kv_heads, block.mlp.hidden]
    return max(n for n in range(1, devices + 1) if all(size % n == 0 for size in sizes))


def _every(interval: int | None) -> Callable[[int], bool]:
    return lambda step: interval is not None and step % interval == 0


def _is_fixed(path: str) -> bool:
    return any(path == f or path.startswith((f + ".", f + "[")) for f in FIXED)


def _short(value: Any) -> str:
    text = value["kind"] if isinstance(value, dict) and "kind" in value else json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
