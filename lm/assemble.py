"""Experiment -> live things: the only place that knows everybody.

``program`` needs shapes alone and serves planning as well as training; ``prepared`` and ``Run``
touch data and disk.
"""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lm.batch import Params
from lm.checkpoint.layout import (
    EXPERIMENT,
    RECORD,
    TOKENIZER,
    load_json,
    newest,
)
from lm.checkpoint.lock import cannot_write
from lm.checkpoint.restore import restore_params
from lm.config import from_plain
from lm.convert.card import Facts
from lm.corpus.prepare import prepare, prepared_folder
from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.errors import ConfigError, CorpusError
from lm.evaluate.evaluator import Context
from lm.experiment import Experiment
from lm.generate.text import Writer
from lm.models.decoder import Decoder, windowed
from lm.models.flops import Flops, training_flops_per_token
from lm.models.model import Model
from lm.parallel.mesh import Mesh, Parallel
from lm.shards import read_manifest
from lm.tokenizers.load import load_tokenizer
from lm.tokenizers.tokenizer import Tokenizer
from lm.train.placed import Placed, place_model, row_shards
from lm.train.program import Program, build_program

Say = Callable[[str], None]
VOCABULARY_ROUNDING = 1024
"""A model's vocabulary may be rounded up to a multiple of this, so that it can be sharded."""


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
    exact: bool = False,
) -> Opened:
    """The parameters of a checkpoint, verified; the optimizer's state is not read.

    Args:
        path: a STEP folder, or a run (its newest whole one).
        devices: where to put the parameters.
        parallel: the mesh; None: fsdp over all devices.
        change: what to change of the model; its parameters must stay the same.
        exact: compute in float32, so that no figure depends on batch or mesh.

    Raises:
        CheckpointError: not a checkpoint, or a damaged one.
    """
    folder = newest(path)
    experiment = from_plain(Experiment, load_json(folder, EXPERIMENT), str(folder / EXPERIMENT))
    record = load_json(folder, RECORD)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    execution = experiment.execution
    if exact:
        execution = replace(execution, compute_dtype="float32", reduce_dtype=None)
    placed = place_model(change(experiment.model), execution, parallel or Parallel(), devices)
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


def write_json_text(path: Path, value: Any) -> None:
    """A JSON file of a run, in one step.

    Raises:
        ResourceError: the run's folder takes nothing.
    """
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path.parent, error) from error


def _tensor_ways(model: Decoder, devices: int) -> int:
    """The most devices over which every sharded dimension of a decoder divides."""
    sizes = [model.vocab_size]
    for block in model.blocks:
        sizes += [block.mixer.num_heads, block.mixer.num_kv_heads, block.mlp.hidden]
    return max(n for n in range(1, devices + 1) if all(size % n == 0 for size in sizes))


def evaluation_context(opened: Opened, rows: int | None) -> Context:
    """What evaluators need of a checkpoint; rows are rounded up to what the devices split."""
    wanted = rows or opened.experiment.evaluation.sequences or opened.experiment.training.sequences
    ways = row_shards(opened.placed.mesh)
    return Context(
        placed=opened.placed,
        tokenizer=opened.tokenizer,
        rows=-(-wanted // ways) * ways,
        length=opened.experiment.training.length,
    )


def held_out_of(experiment: Experiment) -> Shards:
    """The held-out set of a run.

    Raises:
        CorpusError: it has none, or it is not on this machine.
    """
    folder = None if experiment.prepare is None else prepared_folder(experiment.prepare)
    data = experiment.data or Mixture(sources=(Weighted(source=Shards(path=str(folder))),))
    found = _held_out(data, folder)
    if found is None:
        raise CorpusError(
            f"{experiment.name}: this run holds no data out. Name what to score with --data "
            "DIR|FILE."
        )
    return found


def facts_of(opened: Opened) -> Facts:
    """What a model card tells of the run."""
    e, record = opened.experiment, opened.record
    summary: dict[str, Any] = {}
    beside = opened.folder.parent.parent / "summary.json"
    if beside.is_file():
        summary = load_json(beside.parent, beside.name)
    scored = summary.get("held_out", {}) if summary.get("step") == opened.step else {}
    figures = next(iter(scored.values()), {})
    sources = [] if e.data is None else [part.source for part in e.data.sources]
    named = [s.path if isinstance(s, Shards) else "synthetic" for s in sources]
    return Facts(
        name=e.name,
        length=e.training.length,
        step=opened.step,
        tokens=int(record["tokens"]),
        data=tuple(named) or (e.prepare.sources if e.prepare else ()),
        held_out_loss=figures.get("loss"),
        bits_per_byte=figures.get("bits_per_byte"),
        commit=record.get("commit"),
        versions=record.get("versions", {}),
    )
