"""Loss, perplexity and bits per byte over whole documents."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from lm.batch import Batch, Params
from lm.data.shards import Shards
from lm.errors import ConfigError, CorpusError
from lm.evaluate.evaluator import Context, Evaluator, Figures
from lm.evaluate.windows import Document, batches_of, rows_of
from lm.ops.cross_entropy import token_cross_entropy
from lm.parallel.place import own_rows, to_global
from lm.shards import Documents, open_documents
from lm.tokenizers.tokenizer import Tokenizer
from lm.train.placed import Placed

TEXTS = 256
"""Texts that are encoded at a time."""


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How well the model predicts a data set, each document from its beginning on."""

    data: Shards | None = None
    """What is scored; None: the run's own held-out set."""
    batches: int | None = None
    """Only so many batches, for a quick look; None: all.  How much they hold depends on the rows
    of a batch, and bits per byte are left out, since shards do not know the bytes of a part."""
    name: str = "held_out"
    """Metrics are called ``eval/NAME/loss``."""

    def __post_init__(self) -> None:
        """Something is scored.

        Raises:
            ConfigError: no batch, or no name.
        """
        if self.batches is not None and self.batches < 1:
            raise ConfigError(
                f"perplexity {self.name!r}: {self.batches} batches score nothing. "
                "Use 1 or more, or None for all."
            )
        if not self.name:
            raise ConfigError("perplexity: the name is empty; metrics are called by it.")

    def build(self, context: Context) -> Evaluator:
        """Open the data; the scoring is compiled at its first use.

        Raises:
            CorpusError: no data, or data that do not fit the tokenizer.
            ShardingError: rows that cannot be split over the devices.
        """
        data = self.data or context.held_out
        if data is None:
            raise CorpusError(
                f"perplexity {self.name!r}: this run has no held-out data. Tokenise with "
                "--held-out FRACTION, or name a data set in the evaluator."
            )
        digest = None if context.tokenizer is None else context.tokenizer.digest
        data.build(context.length, digest)  # checks the files and the tokenizer
        manifest, documents = open_documents(Path(data.path), data.split)
        score = Scorer(context)
        size = manifest.splits[data.split].text_bytes if self.batches is None else None

        def evaluate(params: Params) -> Figures:
            return figures(score(params, documents_in(documents), self.batches), size)

        return evaluate


class Sums(NamedTuple):
    """Sums over scored tokens."""

    nll: float
    """Negative log likelihood in nats."""
    correct: float
    """Tokens that the model held likeliest."""
    tokens: int


class Scorer:
    """Sums over documents: device by device in float32 a token, then in float64 on the host.

    With a float32 model the result does not depend on batch or mesh (to 1e-6); every token but
    the first of each document is scored exactly once.
    """

    def __init__(self, context: Context) -> None:
        """Compiles nothing yet.

        Raises:
            ShardingError: rows that cannot be split over the devices.
        """
        self._rows, self._length = context.rows, context.length
        self._between = context.between
        self._batch = context.placed.batch(context.rows, context.length)
        self._own = own_rows(self._batch.rows.sharding, context.rows)
        self._score = _compiled(context.placed, self._batch.targets.sharding)

    def __call__(
        self, params: Params, documents: Iterable[Document], batches: int | None = None
    ) -> Sums:
        """The sums over documents, or over their first batches.

        Batch n is dispatched before the host reads what came of batch n - 1.
        """
        total = np.zeros(3)
        rows = rows_of(documents, self._length)
        ahead: tuple[Batch, tuple[jax.Array, jax.Array]] | None = None
        for batch in itertools.islice(batches_of(rows, self._rows, self._length), batches):
            own = jax.tree.map(lambda x: x[self._own], batch)
            scored = self._score(params, to_global(own, self._batch))
            if ahead is not None:
                total += _summed(*ahead)
            ahead = batch, scored
            self._between()
        if ahead is not None:
            total += _summed(*ahead)
        nll, correct, tokens = _over_processes(total).tolist()
        return Sums(nll, correct, int(tokens))


def figures(sums: Sums, text_bytes: int | None) -> Figures:
    """What the sums say.

    Args:
        sums: over the tokens of some documents.
        text_bytes: UTF-8 bytes of their text; None where that is unknown.

    Raises:
        CorpusError: nothing was scored.
    """
    if sums.tokens == 0:
        raise CorpusError("nothing to score: no document has a token after its first.")
    loss = sums.nll / sums.tokens
    found: Figures = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums.correct / sums.tokens,
        "tokens": sums.tokens,
    }
    if text_bytes:
        found["bits_per_byte"] = sums.nll / math.log(2) / text_bytes
        found["bytes"] = text_bytes
    return found


def score_texts(
    score: Scorer, params: Params, tokenizer: Tokenizer, texts: Iterable[str]
) -> Figures:
    """The figures of texts that are no data set yet; each is encoded as a document.

    Raises:
        CorpusError: no text.
    """
    size = 0

    def documents() -> Iterator[Document]:
        nonlocal size
        special, rest = tokenizer.special, iter(texts)
        while some := list(itertools.islice(rest, TEXTS)):
            size += sum(len(text.encode("utf-8")) for text in some)
            for ids in tokenizer.encode_batch(some):
                yield np.concatenate([[special.bos], ids, [special.eos]])

    sums = score(params, documents())
    return figures(sums, size)


def documents_in(documents: Documents) -> Iterator[Document]:
    """The documents of a split, in order."""
    for tokens, starts in zip(documents.tokens, documents.starts, strict=True):
        plain = tokens.view(np.ndarray)  # slicing a memmap costs microseconds more
        for begin, end in itertools.pairwise(starts.tolist()):
            yield plain[begin:end]


def _compiled(placed: Placed, out: NamedSharding) -> Callable[..., Any]:
    """(params, batch) -> for each token its nll, and 1.0 where it was held likeliest."""
    model, explicit = placed.model, placed.explicit

    def of_shard(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden = model.apply(params, batch, None).hidden
        return token_cross_entropy(model.logits(params), hidden, batch.targets)

    grid = placed.batch_specs.targets
    inward = (explicit.specs(model.leaves), placed.batch_specs)
    each = explicit.region(of_shard, inward, (grid, grid))

    def score(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return placed.in_order(each(params, placed.spread(batch)))

    return jax.jit(score, out_shardings=(out, out))


def _summed(batch: Batch, scored: Sequence[jax.Array]) -> np.ndarray:
    """This process's share of nll, correct and tokens; a row held twice counts once."""
    total = np.zeros(3)
    for nll, correct in zip(*(x.addressable_shards for x in scored), strict=True):
        if nll.replica_id == 0:
            counted = batch.weights[nll.index] > 0
            held = [jax.device_get(x.data)[counted] for x in (nll, correct)]
            total += [*(x.sum(dtype=np.float64) for x in held), counted.sum()]
    return total


def _over_processes(total: np.ndarray) -> np.ndarray:
    """The sum over all processes, to the last bit of float64 (which travels as integers)."""
    if jax.process_count() == 1:
        return total
    every = multihost_utils.process_allgather(total.view(np.uint32))
    return np.ascontiguousarray(every).view(np.float64).sum(axis=0)
