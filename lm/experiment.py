"""The menu: one dataclass with every choice a run may make.

A config is a Python file with a function ``experiment() -> Experiment``.  The kinds named in the
unions here are those that can be read back from JSON.
"""

from dataclasses import dataclass, field

from lm.checkpoint.saving import Saving
from lm.corpus.prepare import Prepare
from lm.data.mixture import Mixture
from lm.errors import ConfigError
from lm.evaluate.perplexity import Perplexity
from lm.layers.execution import Execution
from lm.models.decoder import Decoder
from lm.objectives.causal import CausalLm
from lm.optim.adafactor import Adafactor
from lm.optim.adamw import AdamW
from lm.optim.lion import Lion
from lm.optim.muon import Muon
from lm.parallel.mesh import Parallel
from lm.tokenizers.bytes import Bytes
from lm.tokenizers.characters import Characters
from lm.tokenizers.huggingface import HuggingFace
from lm.tokenizers.sentencepiece import SentencePiece
from lm.track.tracker import Trackers
from lm.train.guard import Guard
from lm.train.step import Training


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Texts that a finished run writes, for a person to read."""

    prompts: tuple[str, ...] = ("",)
    """Beginnings; an empty one begins a document."""
    each: int = 1
    """Texts for each prompt, with seeds that differ."""
    tokens: int = 200
    temperature: float = 0.8
    top_p: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured while a run trains, and at its end."""

    every: int | None = None
    """Steps between evaluations; None: at the end only."""
    evaluators: tuple[Perplexity, ...] = (Perplexity(),)
    sequences: int | None = None
    """Rows of an evaluation batch; None: as in training."""
    samples: Samples | None = None

    def __post_init__(self) -> None:
        """Intervals are positive.

        Raises:
            ConfigError: one that is not.
        """
        for name in ("every", "sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"evaluation.{name}: {value} must be 1 or more, or None.")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run as one value."""

    name: str
    """Folder of the run below RUNS."""
    model: Decoder
    training: Training
    optimizer: AdamW | Lion | Adafactor | Muon
    objective: CausalLm = field(default_factory=CausalLm)
    tokenizer: SentencePiece | HuggingFace | Characters | Bytes | None = None
    """None: the one that ``prepare`` gives."""
    data: Mixture | None = None
    """None: the training split that ``prepare`` gives."""
    prepare: Prepare | None = None
    """Text that is turned into a tokenizer and shards before the run."""
    execution: Execution = field(default_factory=Execution)
    parallel: Parallel = field(default_factory=Parallel)
    evaluation: Evaluation = field(default_factory=Evaluation)
    saving: Saving = field(default_factory=Saving)
    guard: Guard = field(default_factory=Guard)
    tracking: Trackers = field(default_factory=Trackers)

    def __post_init__(self) -> None:
        """What two parts must agree on.

        Raises:
            ConfigError: a name that is no folder name; positions shorter than rows; no data.
        """
        if not self.name or self.name in (".", "..") or set(self.name) & set('/\\:*?"<>|\0'):
            raise ConfigError(
                f"name: {self.name!r} cannot be a folder's name. Use letters, digits, '-' and '_'."
            )
        positions, length = self.model.positions, self.training.length
        if positions is not None and length > positions:
            raise ConfigError(
                f"training.length: rows of {length} tokens, but the model has {positions} "
                f"positions (model.position.length). Use length {positions} or less, or a longer "
                "table."
            )
        if self.guard.recompute_every and self.execution.offload_optimizer:
            raise ConfigError(
                f"guard.recompute_every: {self.guard.recompute_every}, which holds a second state "
                "on the devices, where execution.offload_optimizer says that one is too much. "
                "Leave out one of the two."
            )
        if self.prepare is None and (self.tokenizer is None or self.data is None):
            lacking = "tokenizer" if self.tokenizer is None else "data"
            raise ConfigError(
                f"{lacking}: None, and there is no prepare= that would make it. Name a "
                f"{lacking}, or give prepare=Prepare(sources=..., tokenizer=...)."
            )
