import pytest

from lm.errors import CorpusError
from lm.tokenizers.sentencepiece import SentencePiece, lines


def test_lines_encoded_apart_give_the_ids_of_the_whole(folders, verse, hard):
    tokenizer = SentencePiece(path=str(folders["sentencepiece"])).build()
    assert tokenizer.by_line
    for text in (verse, hard):
        assert tokenizer.encode(text) == tokenizer.processor.encode(text)


def test_lines_joined_are_the_text(verse, hard):
    assert "".join(lines(verse)) == verse
    assert "".join(lines(hard)) == hard


def test_line_break_is_a_piece_and_ends_others(folders):
    tokenizer = SentencePiece(path=str(folders["sentencepiece"])).build()
    texts = [piece.text for piece in tokenizer.facts.pieces]
    assert "\n" in texts
    assert any(text.endswith("\n") and text.strip("\n") for text in texts)


def test_one_exception_is_the_sign_for_spaces(folders):
    tokenizer = SentencePiece(path=str(folders["sentencepiece"])).build()
    assert tokenizer.decode(tokenizer.encode("a▁b")) == "a b"


def test_missing_and_damaged_models_are_told(tmp_path):
    with pytest.raises(CorpusError, match="no SentencePiece model there"):
        SentencePiece(path=str(tmp_path)).build()
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CorpusError, match="not a SentencePiece model"):
        SentencePiece(path=str(tmp_path)).build()


def test_foreign_model_encodes_as_its_library_does(mistral):
    """Mistral puts a space before the text: lines must not be encoded apart."""
    text = "Hello there,\n world\n"
    assert not mistral.by_line
    assert mistral.encode(text) == mistral.processor.encode(text)
    assert mistral.decode(mistral.encode(text)) == text
    assert (mistral.special.bos, mistral.special.eos) == (1, 2)
