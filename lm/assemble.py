"""Experiment -> live things: the only place that knows everybody.

``program`` needs shapes alone and serves planning as well as training; ``ground`` touches data.
What opens a checkpoint is in ``lm.opened``, and what a run does on disk in ``lm.run``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.checkpoint.layout import TOKENIZER
from lm.corpus.prepare import prepare, prepared_folder
from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.errors import ConfigError, CorpusError
from lm.experiment import Experiment
from lm.layers.execution import HOST_MEMORY, Execution
from lm.models.flops import Flops, training_flops_per_token
from lm.parallel.mesh import size
from lm.shards import read_manifest
from lm.tokenizers.load import load_tokenizer
from lm.tokenizers.tokenizer import Tokenizer
from lm.train.placed import Placed, place_model
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
    _check_host_memory(e.execution, devices[0])
    placed = place_model(e.model, e.execution, e.parallel, devices)
    attention(e, placed)  # a kernel that cannot run is told before anything is compiled
    return build_program(
        placed,
        e.objective,
        e.optimizer,
        e.training,
        offload_optimizer=e.execution.offload_optimizer,
    )


def _check_host_memory(execution: Execution, device: Any) -> None:
    if not (execution.offload or execution.offload_optimizer):
        return
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"execution: offload={execution.offload}, offload_optimizer="
            f"{execution.offload_optimizer} need the host's memory ({HOST_MEMORY}), and "
            f"{device.device_kind} offers {', '.join(kinds) or 'none'}. Leave both out; "
            "remat='block' needs the least memory without them."
        )


def attention(experiment: Experiment, placed: Placed) -> list[str]:
    """Which kernels compute attention on these devices, each with the reason.

    Raises:
        ConfigError: the one asked for cannot run here; says what would work.
    """
    e, platform = experiment, placed.mesh.devices.flat[0].platform
    shards = size(placed.mesh, "context")
    mixers = dict.fromkeys(block.mixer for block in e.model.blocks)
    choices = (m.choice(e.execution, platform, e.training.length, shards) for m in mixers)
    return list(dict.fromkeys(f"{kernel}: {why}" for kernel, why in choices))


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


def _held_out(data: Mixture, folder: Path | None) -> Shards | None:
    sources = (part.source for part in data.sources)
    paths = [folder, *(Path(s.path) for s in sources if isinstance(s, Shards))]
    for path in paths:
        if path is not None and "held_out" in read_manifest(path).splits:
            return Shards(path=str(path), split="held_out")
    return None


def _impossible() -> Any:
    raise ConfigError("tokenizer and data: None, and there is no prepare= that would make them.")
