import json

import pytest

from lm.errors import CorpusError
from lm.tokenizers.huggingface import HuggingFace


def test_gpt2_files_have_one_special_token_for_both_ends(gpt2):
    assert gpt2.special.bos == gpt2.special.eos == 50_256
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 50_256, 995]) == "Hello world"
    assert gpt2.vocab_size == 50_257


def test_gpt2_files_saved_become_tokenizer_json(gpt2, tmp_path):
    gpt2.save(tmp_path)
    again = HuggingFace(path=str(tmp_path)).build()
    assert again.digest == gpt2.digest
    text = "  <|endoftext|>\n\n 你好 \x00 don't"
    assert again.encode(text) == gpt2.encode(text)


def test_gpt2_gives_any_text_back(gpt2, hard):
    assert gpt2.decode(gpt2.encode(hard)) == hard


def test_special_tokens_are_those_the_folder_names(folders, tmp_path):
    HuggingFace(path=str(folders["bpe"])).build().save(tmp_path)
    config = {"bos_token": {"content": "a"}, "eos_token": "b", "pad_token": None}
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HuggingFace(path=str(tmp_path)).build()
    names = [
        tokenizer.library.id_to_token(i) for i in (tokenizer.special.bos, tokenizer.special.eos)
    ]
    assert names == ["a", "b"]


def test_folder_without_names_is_guessed_from_the_usual_ones(folders, tmp_path):
    source = folders["bpe"] / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_text(source.read_text())
    special = HuggingFace(path=str(tmp_path)).build().special
    assert (special.bos, special.eos, special.pad) == (0, 1, 2)


def test_missing_damaged_and_endless_tokenizers_are_told(folders, tmp_path):
    with pytest.raises(CorpusError, match=r"tokenizer\.json"):
        HuggingFace(path=str(tmp_path)).build()
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(CorpusError, match="not a tokenizer of the library"):
        HuggingFace(path=str(tmp_path)).build()
    text = (folders["bpe"] / "tokenizer.json").read_text()
    file.write_text(text.replace("<s>", "<one>").replace("</s>", "<two>"))
    with pytest.raises(CorpusError, match="no BOS or EOS"):
        HuggingFace(path=str(tmp_path)).build()
