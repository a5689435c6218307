import pytest
import sentencepiece

from lm.tokenizers.model_proto import BYTE, CONTROL, UNKNOWN, read_model


def test_facts_agree_with_what_the_library_tells(folders):
    model = (folders["sentencepiece"] / "tokenizer.model").read_bytes()
    facts, library = read_model(model), sentencepiece.SentencePieceProcessor(model_proto=model)
    assert len(facts.pieces) == library.get_piece_size()
    for i, piece in enumerate(facts.pieces):
        assert piece.text == library.id_to_piece(i)
        assert piece.score == pytest.approx(library.get_score(i))
        assert (piece.kind == BYTE) == library.is_byte(i)
        assert (piece.kind == CONTROL) == library.is_control(i)
        assert (piece.kind == UNKNOWN) == library.is_unknown(i)


def test_training_options_are_read(folders):
    facts = read_model((folders["sentencepiece"] / "tokenizer.model").read_bytes())
    assert facts.algorithm == "bpe"
    assert facts.byte_fallback
    assert facts.normalisation == "identity"
    assert not any((facts.dummy_prefix, facts.removes_spaces, facts.normalises))


def test_foreign_options_are_read(mistral):
    facts = mistral.facts
    assert facts.algorithm == "bpe"
    assert facts.dummy_prefix
    assert len(facts.pieces) == 32_000
