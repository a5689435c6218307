import pytest

from lm.corpus.readers import Document
from lm.corpus.split import HELD_OUT, TRAIN, Tail, divide, place_of
from lm.errors import ConfigError, CorpusError

CORPUS = [Document(f"d{i}", f"text {i}\n") for i in range(200)]


def held(documents, held_out) -> set[str]:
    division = divide(documents, held_out)
    parts = [part for document in documents for part in division.parts(document)]
    return {document.id for split, document in parts if split == HELD_OUT}


def test_fraction_is_about_kept():
    assert 10 <= len(held(CORPUS, 0.1)) <= 30


def test_choice_stays_when_the_corpus_grows_or_is_reordered():
    assert held(CORPUS[:100], 0.2) == held(CORPUS, 0.2) & {d.id for d in CORPUS[:100]}
    assert held(CORPUS[::-1], 0.2) == held(CORPUS, 0.2)


def test_choice_is_for_ever_the_same():
    assert place_of("macbeth_gut.txt") == pytest.approx(0.5741244, abs=1e-7)


def test_named_documents_are_held_out():
    assert held(CORPUS, ("d3", "d77")) == {"d3", "d77"}


@pytest.mark.parametrize("fraction", [0.001, 0.999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_no_side_is_empty(fraction, count):
    chosen = held(CORPUS[:count], fraction)
    assert 0 < len(chosen) < count


def test_of_a_single_document_the_end_is_held_out():
    division = divide([Document("one", "0123456789")], 0.2)
    parts = list(division.parts(Document("one", "0123456789")))
    assert parts == [(TRAIN, Document("one", "01234567")), (HELD_OUT, Document("one", "89"))]


def test_tail_cuts_every_document_and_loses_nothing():
    division = divide(CORPUS, Tail(fraction=0.3))
    for document in CORPUS:
        assert "".join(part.text for _, part in division.parts(document)) == document.text
        assert [split for split, _ in division.parts(document)] == [TRAIN, HELD_OUT]


def test_without_anything_held_out_there_is_no_such_split():
    for nothing in (0.0, ()):
        assert divide(CORPUS, nothing).splits == (TRAIN,)
        assert held(CORPUS, nothing) == set()
    assert divide(CORPUS, 0.5).splits == (TRAIN, HELD_OUT)


def test_documents_and_bytes_are_counted():
    division = divide([Document("a", "é"), Document("b", "x")], 0.0)
    assert (division.documents, division.text_bytes) == (2, 3)


def test_unknown_document_names_the_nearest():
    with pytest.raises(CorpusError, match=r"'d1999'.*Did you mean 'd199'"):
        divide(CORPUS, ("d3", "d1999"))


def test_holding_out_everything_is_refused():
    with pytest.raises(CorpusError, match="every one of the 2 documents"):
        divide(CORPUS[:2], ("d0", "d1"))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 30.0])
def test_what_is_no_fraction_is_refused(fraction):
    with pytest.raises(ConfigError, match="no fraction"):
        divide(CORPUS, fraction)
    with pytest.raises(ConfigError, match="no fraction"):
        Tail(fraction=fraction)
