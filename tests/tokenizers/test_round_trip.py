"""What holds for every kind of tokenizer."""

import numpy as np
import pytest

from lm.tokenizers.load import load_tokenizer

KINDS = ["sentencepiece", "bpe", "bytes", "characters"]
LOSSLESS = ["sentencepiece", "bpe", "bytes"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_any_text_comes_back_exactly(folders, kind, hard):
    tokenizer = load_tokenizer(folders[kind])
    assert tokenizer.decode(tokenizer.encode(hard)) == hard


@pytest.mark.parametrize("kind", KINDS)
def test_text_trained_on_comes_back_exactly(folders, kind, verse):
    tokenizer = load_tokenizer(folders[kind])
    ids = tokenizer.encode(verse)
    assert tokenizer.decode(ids) == verse
    assert max(ids) < tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_batch_gives_the_ids_of_each_text(folders, kind, verse):
    tokenizer = load_tokenizer(folders[kind])
    texts = [verse, "", "a\nb", verse[7:]]
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == np.uint32 for ids in batch)


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_are_apart_and_silent(folders, kind, verse):
    tokenizer = load_tokenizer(folders[kind])
    special = tokenizer.special
    ids = tokenizer.encode(verse + "<s></s><pad>")
    assert not {special.bos, special.eos, special.pad} & set(ids)
    assert len({special.bos, special.eos, special.pad}) == 3
    around = [special.bos, *tokenizer.encode(verse), special.eos, special.pad]
    assert tokenizer.decode(around) == verse


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizer_has_the_same_digest_and_ids(folders, kind, verse, tmp_path):
    tokenizer = load_tokenizer(folders[kind])
    tokenizer.save(tmp_path / "copy")
    again = load_tokenizer(tmp_path / "copy")
    assert again.digest == tokenizer.digest
    assert again.encode(verse) == tokenizer.encode(verse)
    assert again.special == tokenizer.special


def test_digests_of_different_tokenizers_differ(folders):
    assert len({load_tokenizer(folder).digest for folder in folders.values()}) == len(folders)
