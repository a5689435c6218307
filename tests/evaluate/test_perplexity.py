"""Figures over whole documents are exact, and the same for every batch size and mesh."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Params, Tokens
from lm.corpus.tokenise import tokenise
from lm.data.shards import Shards
from lm.errors import ConfigError, CorpusError, ShardingError
from lm.evaluate import perplexity
from lm.evaluate.evaluator import Context
from lm.evaluate.perplexity import Perplexity, Scorer, Sums, figures, score_texts
from lm.parallel.mesh import Mesh
from lm.tokenizers.bytes import ByteTokenizer
from lm.train.placed import Placed
from tests.evaluate.conftest import LENGTH, MakePlaced

TOKENIZER = ByteTokenizer()
TEXTS = ["To be, or not to be: that is the question.\n" * 3, "Voilà, there is the rub.", "x" * 200]


def one_by_one(placed: Placed, params: Params, documents: list[np.ndarray]) -> Sums:
    """The sums by one forward pass a window, softmax in float64."""
    model = placed.model

    @jax.jit
    def logits(ids: Any, places: Any) -> Any:
        tokens = Tokens(ids, jnp.ones_like(ids), places)
        batch = Batch(tokens, ids, jnp.ones(ids.shape), jnp.zeros(1, jnp.int32))
        return model.logits(params)(model.apply(params, batch, None).hidden)

    nll, correct, count = 0.0, 0, 0
    for document in documents:
        for start in range(0, document.size - 1, LENGTH):
            window = document[start : start + LENGTH + 1].astype(np.int32)
            ids = np.zeros((1, LENGTH), np.int32)
            ids[0, : window.size - 1] = window[:-1]
            scores = np.asarray(logits(ids, np.arange(LENGTH)[None]))[0, : window.size - 1]
            scores = scores.astype(np.float64)
            top = scores.max(-1, keepdims=True)
            log_z = np.log(np.exp(scores - top).sum(-1)) + top[:, 0]
            picked = scores[np.arange(window.size - 1), window[1:]]
            nll += (log_z - picked).sum()
            correct += int((picked >= top[:, 0]).sum())
            count += window.size - 1
    return Sums(nll, correct, count)


@pytest.fixture(scope="module")
def exact(make_placed: MakePlaced, documents: list[np.ndarray]) -> Any:
    return cache(lambda family: one_by_one(*make_placed(Mesh(fsdp=1), 1, family), documents))


@pytest.mark.parametrize(
    ("mesh", "devices", "rows", "family"),
    [
        (Mesh(fsdp=1), 1, 1, "llama"),
        (Mesh(fsdp=1), 1, 7, "llama"),
        (Mesh(fsdp=1), 1, 64, "gpt2"),
        (Mesh(fsdp=8), 8, 8, "llama"),
        (Mesh(fsdp=8), 8, 16, "gpt2"),
        (Mesh(data=2, fsdp=2, tensor=2), 8, 4, "llama"),
        (Mesh(data=2, fsdp=2, tensor=2), 8, 12, "gpt2"),
        (Mesh(data=4, tensor=2, fsdp=1), 8, 8, "llama"),
    ],
    ids=lambda x: f"{x.data}x{x.fsdp}x{x.tensor}" if isinstance(x, Mesh) else str(x),
)
def test_sums_are_those_of_single_windows_for_every_batch_and_mesh(
    mesh: Mesh,
    devices: int,
    rows: int,
    family: str,
    make_placed: MakePlaced,
    documents: list[np.ndarray],
    exact: Any,
) -> None:
    placed, params = make_placed(mesh, devices, family)
    found = Scorer(Context(placed, None, rows, LENGTH))(params, documents)
    expected = exact(family)
    assert found.tokens == expected.tokens == sum(d.size - 1 for d in documents)
    assert found.correct == expected.correct
    assert found.nll == pytest.approx(expected.nll, rel=1e-6)
    assert found.nll / found.tokens > 3  # loud weights: nothing is near the uniform loss


@pytest.fixture(scope="module")
def alone(make_placed: MakePlaced) -> tuple[Context, Params]:
    placed, params = make_placed(Mesh(fsdp=1))
    return Context(placed, TOKENIZER, 4, LENGTH), params


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(TEXTS):
        (base / f"{number}.txt").write_text(text, encoding="utf-8")
    out = base / "shards"
    tokenise([str(base / f"{n}.txt") for n in range(len(TEXTS))], TOKENIZER, out)
    return out


def test_figures_of_a_data_set_are_those_of_its_texts(
    alone: tuple[Context, Params], folder: Path
) -> None:
    context, params = alone
    held_out = Shards(path=str(folder))
    found = Perplexity().build(context._replace(held_out=held_out))(params)
    assert found == Perplexity(data=held_out).build(context)(params)
    assert found == score_texts(Scorer(context), params, TOKENIZER, TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    assert (found["tokens"], found["bytes"]) == (size + len(TEXTS), size)
    nll = found["loss"] * found["tokens"]
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / size)


def test_a_part_of_the_data_has_no_bits_per_byte(
    alone: tuple[Context, Params], folder: Path
) -> None:
    context, params = alone
    data = Shards(path=str(folder))
    part = Perplexity(data=data, batches=2).build(context)(params)
    whole = Perplexity(data=data, batches=99).build(context)(params)
    assert set(part) == {"loss", "perplexity", "accuracy", "tokens"}
    assert 0 < part["tokens"] <= 2 * 4 * LENGTH < whole["tokens"]


def test_evaluating_again_compiles_nothing_and_gives_the_same(
    alone: tuple[Context, Params], documents: list[np.ndarray]
) -> None:
    context, params = alone
    scorer = Scorer(context)
    with jax.transfer_guard("disallow"):
        first = scorer(params, documents)
        second = scorer(params, documents[::-1])
    assert scorer._score._cache_size() == 1
    assert second.tokens == first.tokens
    assert second.nll == pytest.approx(first.nll, rel=1e-6)


def test_a_batch_is_dispatched_before_the_one_before_is_read(
    alone: tuple[Context, Params], documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, params = alone
    scorer, events = Scorer(context), []
    scorer._score = lambda *_: events.append("dispatch")

    def read(*_: Any) -> np.ndarray:
        events.append("read")
        return np.zeros(3)

    monkeypatch.setattr(perplexity, "_summed", read)
    scorer(params, documents, batches=3)
    assert events == ["dispatch", "dispatch", "read", "dispatch", "read", "read"]


def test_scoring_can_be_given_up_after_every_batch(
    alone: tuple[Context, Params], documents: list[np.ndarray]
) -> None:
    class EnoughError(Exception):
        pass

    context, params = alone
    called = []

    def between() -> None:
        called.append(len(called))
        if len(called) == 3:
            raise EnoughError

    scorer = Scorer(context._replace(between=between))
    with pytest.raises(EnoughError):
        scorer(params, documents)
    assert scorer(params, documents, batches=2).tokens > 0
    assert len(called) == 5


def test_what_cannot_be_scored_is_refused(
    alone: tuple[Context, Params], folder: Path, make_placed: MakePlaced
) -> None:
    context, params = alone
    with pytest.raises(CorpusError, match="no held-out data"):
        Perplexity().build(context)
    with pytest.raises(CorpusError, match="nothing to score"):
        figures(Scorer(context)(params, [np.array([256])]), 10)
    other = context._replace(tokenizer=type("Other", (ByteTokenizer,), {"digest": "0" * 64})())
    with pytest.raises(CorpusError, match="made by the tokenizer"):
        Perplexity(data=Shards(path=str(folder))).build(other)
    spread, _ = make_placed(Mesh(fsdp=8), 8)
    with pytest.raises(ShardingError, match="batch of 4 rows"):
        Scorer(context._replace(placed=spread))
    for wrong in ({"batches": 0}, {"name": ""}):
        with pytest.raises(ConfigError, match="perplexity"):
            Perplexity(**wrong)  # pyright: ignore[reportArgumentType]
