import itertools
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lm.batch import Batch, Example
from lm.data.loader import Loader
from lm.data.mixture import Blend, Mixture, Weighted
from lm.data.shards import Shards
from lm.data.synthetic import Synthetic
from lm.errors import ConfigError, CorpusError

LENGTH, SEQUENCES = 16, 12


def score(ids, segments) -> Example:
    same = (segments[..., 1:] == segments[..., :-1]) & (segments[..., 1:] != 0)
    return Example(ids[..., :-1], segments[..., :-1], ids[..., 1:], same.astype(np.float32))


class NextToken:
    def prepare(self, ids, segments, rng):
        return score(ids, segments)


class NextTokenOfRows(NextToken):
    def prepare_rows(self, ids, segments):
        return score(ids, segments)


class Noisy:
    """Masks at random, as an objective for an encoder does."""

    def prepare(self, ids, segments, rng):
        example = score(ids, segments)
        hidden = rng.random(example.ids.shape) < 0.3
        return example._replace(
            ids=np.where(hidden, 3, example.ids), weights=example.weights * hidden
        )


class TwoSided:
    """An encoder's and a decoder's side."""

    def prepare(self, ids, segments, rng):
        half = ids.size // 2
        return Example(
            ids[half:], segments[half:], ids[half:], np.ones(ids.size - half, np.float32),
            (ids[:half], segments[:half]),
        )  # fmt: skip


@pytest.fixture
def mixture(write_shards, make_documents) -> Mixture:
    a = write_shards("a", [make_documents(0, 40), make_documents(1, 20)])
    b = write_shards("b", [make_documents(2, 30)], dtype="uint32")
    return Mixture(
        sources=(
            Weighted(source=Shards(path=str(a)), weight=0.6),
            Weighted(source=Shards(path=str(b)), weight=0.3),
            Weighted(source=Synthetic(vocab_size=90, tokens=2000), weight=0.1),
        )
    )


@pytest.fixture
def loader(mixture) -> Loader:
    return Loader(
        blend=mixture.build(LENGTH), objective=NextTokenOfRows(), sequences=SEQUENCES, seed=7
    )


def leaves(batch: Batch) -> list[np.ndarray]:
    source = [] if batch.source is None else [*batch.source]
    return [*batch.inputs, batch.targets, batch.weights, batch.rows, *source]


def assert_equal(a: Batch, b: Batch) -> None:
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def take(loader: Loader, count: int, position: int = 0, **options) -> list[Batch]:
    with loader.stream(position, **options) as stream:
        return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("objective", [NextTokenOfRows(), Noisy(), TwoSided()])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_global_batches_are_the_same_for_any_number_of_processes(loader, processes, objective):
    loader = replace(loader, objective=objective)
    whole = take(loader, 6)
    each = SEQUENCES // processes
    parts = [
        take(replace(loader, rows=slice(p * each, (p + 1) * each)), 6) for p in range(processes)
    ]
    for step, expected in enumerate(whole):
        columns = zip(*(leaves(part[step]) for part in parts), strict=True)
        for found, leaf in zip(columns, leaves(expected), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), leaf)


def test_rows_may_be_any_of_the_global_batch(loader):
    chosen = [7, 2, 11]
    for part, whole in zip(take(replace(loader, rows=chosen), 3), take(loader, 3), strict=True):
        assert part.rows.tolist() == chosen
        for x, y in zip(leaves(part), leaves(whole), strict=True):
            np.testing.assert_array_equal(x, y[chosen])


@pytest.mark.parametrize("objective", [NextTokenOfRows(), Noisy()])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_resumed_stream_goes_on_as_if_nothing_had_happened(loader, threads, objective):
    loader = replace(loader, objective=objective)
    whole = take(loader, 30)  # several epochs of each source
    with loader.stream(threads=threads) as stream:
        for _ in range(11):
            next(stream)
        position = stream.position
    assert position == 11 * SEQUENCES
    for a, b in zip(take(loader, 19, position, threads=threads), whole[11:], strict=True):
        assert_equal(a, b)


def test_positions_count_what_was_taken_and_not_what_was_prefetched(loader):
    with loader.stream(100, threads=2, prefetch=8) as stream:
        assert stream.position == 100
        next(stream)
        time.sleep(0.05)
        assert stream.position == 100 + SEQUENCES


def test_an_objective_row_by_row_gives_what_one_for_rows_gives(loader):
    for a, b in zip(take(loader, 4), take(replace(loader, objective=NextToken()), 4), strict=True):
        assert_equal(a, b)


def test_a_batch_is_what_the_contract_says(loader):
    batch = loader.batch(0)
    for leaf in (*batch.inputs, batch.targets):
        assert leaf.shape == (SEQUENCES, LENGTH)
        assert leaf.dtype == np.int32
        assert leaf.flags.c_contiguous
    assert batch.weights.dtype == np.float32
    assert batch.rows.dtype == np.int32
    assert batch.rows.tolist() == list(range(SEQUENCES))
    assert batch.source is None


def test_nothing_is_scored_across_documents_and_positions_restart(loader):
    crossings = 0
    for batch in take(loader, 20):
        inputs = batch.inputs
        start = np.zeros(inputs.ids.shape, bool)
        start[:, 0] = True
        start[:, 1:] = inputs.segments[:, 1:] != inputs.segments[:, :-1]
        assert (inputs.positions[start] == 0).all()
        assert (np.diff(inputs.positions, axis=1)[~start[:, 1:]] == 1).all()
        before = start[:, 1:]  # the target at t is the input at t + 1
        assert (batch.weights[:, :-1][before] == 0).all()
        crossings += before.sum()
    assert crossings > 100


def test_padding_is_not_scored(write_shards):
    folder = write_shards("tiny", [[np.array([1, 5, 6, 2])]])
    mixture = Mixture(sources=(Weighted(source=Shards(path=str(folder))),))
    loader = Loader(
        blend=mixture.build(8), objective=NextTokenOfRows(), sequences=2, seed=0
    )  # shorter than one window, and fewer windows than rows
    batch = next(loader.stream(threads=0))
    np.testing.assert_array_equal(batch.weights, [[1, 1, 1, 0, 0, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(batch.inputs.segments, [[1, 1, 1, 1, 0, 0, 0, 0]] * 2)


def test_an_epoch_of_one_source_scores_every_token_once(write_shards, make_documents):
    documents = make_documents(3, 50)
    folder = write_shards("c", [documents])
    blend = Mixture(sources=(Weighted(source=Shards(path=str(folder))),)).build(LENGTH)
    windows = len(blend.sources[0])
    loader = Loader(blend=blend, objective=NextTokenOfRows(), sequences=windows, seed=2)
    expected = np.sort(np.concatenate([document[1:] for document in documents]))
    epochs = take(loader, 2)
    for batch in epochs:
        np.testing.assert_array_equal(np.sort(batch.targets[batch.weights == 1]), expected)
    assert not np.array_equal(epochs[0].inputs.ids, epochs[1].inputs.ids)


def test_random_choices_differ_between_rows_and_epochs_and_repeat_with_the_seed(write_shards):
    folder = write_shards("one", [[np.arange(1, 2000)]])
    blend = Mixture(sources=(Weighted(source=Shards(path=str(folder))),)).build(1998)
    loader = Loader(blend=blend, objective=Noisy(), sequences=4, seed=2)
    batch = loader.batch(0)  # the same window in four epochs
    assert np.unique(batch.targets, axis=0).shape[0] == 1
    assert np.unique(batch.weights, axis=0).shape[0] == 4
    assert_equal(batch, loader.batch(0))
    assert not np.array_equal(batch.weights, replace(loader, seed=3).batch(0).weights)


def test_skipped_ranges_are_left_out_and_nothing_else(loader):
    skipped = ((30, 37), (5, 20), (18, 22), (37, 40))
    numbers = np.concatenate(
        [replace(loader, skipped=skipped).numbers(k * SEQUENCES) for k in range(10)]
    )
    expected = [n for n in range(200) if not any(a <= n < b for a, b in skipped)]
    assert numbers.tolist() == expected[: numbers.size]


def test_a_skip_ahead_of_the_position_changes_nothing_behind_it(loader):
    position = 4 * SEQUENCES
    later = replace(loader, skipped=((position, position + 2 * SEQUENCES),))
    whole = take(loader, 9)
    for a, b in zip(take(later, 7), whole[:4] + whole[6:], strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("skipped", [((5, 5),), ((-1, 3),), ((9, 2),)])
def test_a_range_that_skips_nothing_is_refused(loader, skipped):
    with pytest.raises(ConfigError, match="greater one"):
        replace(loader, skipped=skipped)


def test_origins_say_which_documents_a_batch_holds(loader):
    position = 5 * SEQUENCES
    batch, origins = loader.batch(position), loader.origins(position)
    assert len(origins) == SEQUENCES
    documents = {}
    for source in loader.blend.sources[:2]:
        ids, segments = source.read(np.arange(len(source)))
        for window in range(len(source)):
            for s, piece in enumerate(source.documents(window), start=1):
                documents.setdefault((source.name, piece.document), {}).update(
                    enumerate(ids[window][segments[window] == s], start=piece.start)
                )
    for row, origin in enumerate(origins):
        for s, (piece, name) in enumerate(zip(origin.pieces, origin.names, strict=True), start=1):
            if "synthetic" in origin.source:
                continue
            assert name.startswith("a/" if origin.source.endswith("a:train") else "b/")
            text = documents[origin.source, piece.document]
            found = batch.inputs.ids[row][batch.inputs.segments[row] == s]
            expected = [text[t] for t in range(piece.start, piece.stop)][: found.size]
            assert found.tolist() == expected


@dataclass
class Broken:
    """A source whose disk fails at one window."""

    name: str = "broken"
    tokenizer: None = None
    length: int = LENGTH

    def documents(self, index):
        return []

    def names(self, documents):
        return []

    def __len__(self):
        return 1000

    def read(self, indices):
        if (indices == 500).any():
            raise CorpusError("broken: window 500 cannot be read. Copy it once more.")
        shape = (indices.size, self.length + 1)
        return np.ones(shape, np.int32), np.ones(shape, np.int32)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_while_reading_arrives_with_its_message_and_ends_the_stream(loader, threads):
    broken = replace(loader, blend=Blend([Broken()], [1.0]))
    stream = broken.stream(threads=threads)
    with pytest.raises(CorpusError, match="window 500 cannot be read"):
        list(itertools.islice(stream, 1000))
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_a_closed_stream_leaves_no_thread(loader):
    def workers():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    before = set(workers())
    stream = loader.stream(threads=3, prefetch=16)
    next(stream)
    assert set(workers()) - before
    stream.close()
    stream.close()
    deadline = time.monotonic() + 10
    while set(workers()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(workers()) - before


def test_a_batch_of_no_sequences_is_refused(loader):
    with pytest.raises(ConfigError, match="sequences 0"):
        replace(loader, sequences=0)
