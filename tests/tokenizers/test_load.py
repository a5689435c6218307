import shutil

import pytest

from lm.errors import CorpusError
from lm.tokenizers.bytes import ByteTokenizer
from lm.tokenizers.characters import CharacterTokenizer
from lm.tokenizers.huggingface import HuggingFaceTokenizer
from lm.tokenizers.load import load_tokenizer
from lm.tokenizers.sentencepiece import SentencePieceTokenizer
from lm.tokenizers.transformers_files import write_transformers_files


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sentencepiece", SentencePieceTokenizer),
        ("bpe", HuggingFaceTokenizer),
        ("bytes", ByteTokenizer),
        ("characters", CharacterTokenizer),
    ],
)
def test_kind_is_found_from_the_files(folders, kind, expected):
    assert isinstance(load_tokenizer(folders[kind]), expected)


def test_folder_without_tokenizer_says_what_is_expected(tmp_path):
    with pytest.raises(CorpusError, match=r"tokenizer\.model .* tokenizer\.json .* tokenizer_lm"):
        load_tokenizer(tmp_path)
    with pytest.raises(CorpusError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "words"}'])
def test_damaged_file_of_ours_is_told(tmp_path, content):
    (tmp_path / "tokenizer_lm.json").write_text(content)
    with pytest.raises(CorpusError, match=r"tokenizer_lm\.json"):
        load_tokenizer(tmp_path)


def test_exported_folder_loads_as_the_tokenizer_it_came_from(folders, tmp_path):
    tokenizer = load_tokenizer(folders["sentencepiece"])
    write_transformers_files(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).digest == tokenizer.digest


def test_richer_tokenizer_json_beats_the_model_beside_it(folders, tmp_path):
    small = load_tokenizer(folders["sentencepiece"])
    small.save(tmp_path)
    write_transformers_files(load_tokenizer(folders["characters"]), tmp_path)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)  # fewer ids: not taken
    shutil.rmtree(tmp_path)
    load_tokenizer(folders["characters"]).save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), CharacterTokenizer)
