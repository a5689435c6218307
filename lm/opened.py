"""A checkpoint on the devices: opened, verified, ready to be scored, exported or to write."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lm.batch import Params
from lm.checkpoint.layout import EXPERIMENT, RECORD, TOKENIZER, load_json, newest
from lm.checkpoint.restore import restore_params
from lm.config import from_plain
from lm.convert.card import Facts
from lm.data.shards import Shards
from lm.errors import ConfigError
from lm.evaluate.evaluator import Context
from lm.experiment import Experiment
from lm.generate.text import Writer
from lm.models.decoder import Decoder, windowed
from lm.models.model import Model
from lm.parallel.mesh import Mesh, Parallel
from lm.tokenizers.load import load_tokenizer
from lm.tokenizers.tokenizer import Tokenizer
from lm.train.placed import Placed, place_model, row_shards


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


def _tensor_ways(model: Decoder, devices: int) -> int:
    """The most devices over which every sharded dimension of a decoder divides."""
    sizes = [model.vocab_size]
    for block in model.blocks:
        sizes += [block.mixer.num_heads, block.mixer.num_kv_heads, block.mlp.hidden]
    return max(n for n in range(1, devices + 1) if all(size % n == 0 for size in sizes))
