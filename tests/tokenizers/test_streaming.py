import pytest

from lm.tokenizers.bytes import Bytes
from lm.tokenizers.load import load_tokenizer
from lm.tokenizers.streaming import StreamDecoder


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe", "bytes", "characters"])
def test_pieces_joined_are_the_text(folders, kind, hard, verse):
    tokenizer = load_tokenizer(folders[kind])
    for text in (hard, verse, verse + hard + verse):
        ids = [tokenizer.special.bos, *tokenizer.encode(text), tokenizer.special.eos]
        decoder = StreamDecoder(tokenizer)
        parts = [decoder.push([i]) for i in ids] + [decoder.flush()]
        assert "".join(parts) == tokenizer.decode(ids)


def test_characters_come_whole():
    tokenizer = Bytes().build()
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.push([i]) for i in tokenizer.encode("aé🙂b")]
    assert [part for part in parts if part] == ["a", "é", "🙂", "b"]


def test_ids_that_are_no_text_come_as_the_whole_decodes_them():
    tokenizer = Bytes().build()
    ids = [0x61, 0xFF, 0xFE, 0xC3, 0x62, 0xF0, 0x9F]
    decoder = StreamDecoder(tokenizer)
    assert "".join([decoder.push([i]) for i in ids] + [decoder.flush()]) == tokenizer.decode(ids)


def test_space_before_a_word_is_kept_where_the_first_one_is_dropped(mistral):
    text = "  two words\n and  more"
    decoder = StreamDecoder(mistral)
    parts = [decoder.push([i]) for i in mistral.encode(text)] + [decoder.flush()]
    assert "".join(parts) == text


def test_work_for_a_token_does_not_grow_with_the_text():
    tokenizer = Bytes().build()
    seen = []

    class Counting:
        special = tokenizer.special

        def decode(self, ids):
            seen.append(len(ids))
            return tokenizer.decode(ids)

    decoder = StreamDecoder.__new__(StreamDecoder)
    decoder.__dict__ |= StreamDecoder(tokenizer).__dict__ | {"_tokenizer": Counting()}
    for i in tokenizer.encode("ab é 🙂" * 100):
        decoder.push([i])
    assert max(seen) <= 8
