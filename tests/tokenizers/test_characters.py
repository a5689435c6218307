import pytest

from lm.errors import CorpusError
from lm.tokenizers.characters import Characters, CharacterTokenizer


def test_unknown_characters_can_be_seen():
    tokenizer = CharacterTokenizer("abc")
    ids = tokenizer.encode("aZ🙂c")
    assert ids[1] == ids[2] == tokenizer.special.unknown
    assert tokenizer.decode(ids) == "a\ufffd\ufffdc"


def test_a_character_twice_is_refused():
    with pytest.raises(CorpusError, match="each one once"):
        CharacterTokenizer("aba")


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(CorpusError, match="lm tokenizer train"):
        Characters(path=str(tmp_path)).build()
