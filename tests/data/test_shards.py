import numpy as np
import pytest

from lm.data.packing import unpack
from lm.data.shards import Shards
from lm.errors import CorpusError


@pytest.fixture
def corpus(write_shards, make_documents):
    files = [make_documents(0, 30), make_documents(1, 1), make_documents(2, 50)]
    return Shards(path=str(write_shards("corpus", files))), files


@pytest.mark.parametrize("length", [1, 5, 16, 64, 10_000])
def test_an_epoch_trains_every_token_once(corpus, length):
    config, files = corpus
    source = config.build(length)
    ids, segments = source.read(np.arange(len(source)))
    scored = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
    expected = np.concatenate([document[1:] for documents in files for document in documents])
    np.testing.assert_array_equal(ids[:, 1:][scored], expected)


@pytest.mark.parametrize("length", [5, 16])
def test_windows_of_a_file_unpack_to_its_documents(write_shards, make_documents, length):
    documents = make_documents(5, 40)
    source = Shards(path=str(write_shards("one", [documents]))).build(length)
    unpacked = unpack(*source.read(np.arange(len(source))))
    assert [d.tolist() for d in unpacked] == [d.tolist() for d in documents]


@pytest.mark.parametrize("length", [3, 16, 64])
def test_pieces_say_what_each_segment_holds(corpus, length):
    config, files = corpus
    source = config.build(length)
    documents = [document for file in files for document in file]
    for window in range(len(source)):
        ids, segments = source.read(np.array([window]))
        pieces = source.documents(window)
        assert len(pieces) == segments.max()
        for segment, piece in enumerate(pieces, start=1):
            np.testing.assert_array_equal(
                ids[segments == segment], documents[piece.document][piece.start : piece.stop]
            )


def test_windows_are_read_in_any_order_and_number(corpus):
    source = corpus[0].build(16)
    whole = source.read(np.arange(len(source)))
    some = np.random.default_rng(0).integers(0, len(source), 200)
    ids, segments = source.read(some)
    np.testing.assert_array_equal(ids, whole[0][some])
    np.testing.assert_array_equal(segments, whole[1][some])
    assert source.read(np.empty(0, np.int64))[0].shape == (0, 17)


def test_names_are_those_of_the_files(corpus):
    source = corpus[0].build(16)
    assert source.names([80, 0, 29, 30, 31]) == [
        "corpus/2/49",
        "corpus/0/0",
        "corpus/0/29",
        "corpus/1/0",
        "corpus/2/0",
    ]


def test_ids_above_65535_are_read(write_shards):
    document = np.array([1, 70_000, 128_255, 2])
    source = Shards(path=str(write_shards("wide", [[document]], dtype="uint32"))).build(8)
    ids, _ = source.read(np.array([0]))
    assert ids[0, :4].tolist() == document.tolist()


def test_the_wrong_tokenizer_is_refused(write_shards, make_documents):
    config = Shards(path=str(write_shards("c", [make_documents(0, 3)], digest="a" * 64)))
    config.build(8, "a" * 64)
    with pytest.raises(CorpusError, match=r"made by the tokenizer a{12}, but .* b{12}"):
        config.build(8, "b" * 64)


def test_the_source_knows_its_tokenizer(corpus):
    assert corpus[0].build(8).tokenizer.vocab_size == 500


def test_a_missing_split_is_named(corpus):
    with pytest.raises(CorpusError, match="no split 'held_out'; it has train"):
        Shards(path=corpus[0].path, split="held_out").build(8)


def test_a_split_with_nothing_to_predict_is_refused(write_shards):
    folder = write_shards("short", [[np.array([1])]])
    with pytest.raises(CorpusError, match="less than two tokens"):
        Shards(path=str(folder)).build(8)


def test_offsets_that_do_not_span_their_file_are_refused(write_shards, make_documents):
    folder = write_shards("bad", [make_documents(0, 3)])
    path = folder / "train-00000.documents"
    offsets = np.fromfile(path, "uint64")
    offsets[-1] -= 1
    offsets.tofile(path)
    with pytest.raises(CorpusError, match=r"train-00000\.documents: runs from 0 to"):
        Shards(path=str(folder)).build(8)


def test_a_lost_file_of_names_is_named(corpus, tmp_path):
    (tmp_path / "corpus" / "train-00001.ids").unlink()
    source = corpus[0].build(16)
    assert source.names([0]) == ["corpus/0/0"]
    with pytest.raises(CorpusError, match=r"train-00001\.ids"):
        source.names([30])
