import json
import random

import pytest
import sentencepiece

from lm.errors import ConversionError
from lm.tokenizers.huggingface import HuggingFace
from lm.tokenizers.load import load_tokenizer
from lm.tokenizers.sentencepiece import SentencePieceTokenizer
from lm.tokenizers.training import fit_tokenizer
from lm.tokenizers.transformers_files import write_transformers_files

KINDS = ["sentencepiece", "bpe", "bytes", "characters"]


def random_texts(count: int) -> list[str]:
    """Strings that mix letters, runs of spaces and breaks, and characters never seen."""
    rng = random.Random(0)
    alphabet = "  \n\tabehKINGtz.,;!你🙂\u0301<s>"
    return [
        "".join(
            rng.choice(alphabet) * (rng.randint(2, 20) if rng.random() < 0.1 else 1)
            for _ in range(rng.randint(1, 40))
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_library_reads_the_files_with_the_same_ids_and_text(folders, kind, tmp_path, verse, hard):
    tokenizer = load_tokenizer(folders[kind])
    write_transformers_files(tokenizer, tmp_path)
    again = HuggingFace(path=str(tmp_path)).build()
    assert again.special.bos == tokenizer.special.bos
    assert again.vocab_size == tokenizer.vocab_size
    for text in (verse, hard, verse + hard):
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids) == tokenizer.decode(ids)


def test_spaces_of_one_score_are_merged_from_the_left(mistral, tmp_path):
    """Mistral's pieces of 2 to 16 spaces have all the same score."""
    write_transformers_files(mistral, tmp_path)
    again = HuggingFace(path=str(tmp_path)).build()
    for text in [" " * n + "x" for n in range(50)] + random_texts(200):
        assert again.encode(text) == mistral.encode(text)


def test_model_that_normalises_is_refused_by_name(tmp_path, verse):
    (tmp_path / "text.txt").write_text(verse * 5)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "m"),
        vocab_size=60,
        model_type="unigram",
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer((tmp_path / "m.model").read_bytes())
    assert tokenizer.special.unknown is not None
    with pytest.raises(ConversionError, match=r"nmt_nfkc.* and it removes extra spaces"):
        write_transformers_files(tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_config_names_the_special_tokens(folders, tmp_path):
    write_transformers_files(load_tokenizer(folders["sentencepiece"]), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")


@pytest.mark.parity
@pytest.mark.parametrize("kind", [*KINDS, "mistral", "gpt2"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transformers_gives_the_same_ids_and_text(
    kind, family, tmp_path, shared_data, folders, request
):
    """On whole held-out plays and on all sorts of text, beside the config of either family."""
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(folders[kind]) if kind in KINDS else request.getfixturevalue(kind)
    write_transformers_files(tokenizer, tmp_path)
    model = {"model_type": family, "vocab_size": tokenizer.vocab_size}
    (tmp_path / "config.json").write_text(json.dumps(model))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.bos_token_id == tokenizer.special.bos
    assert theirs.eos_token_id == tokenizer.special.eos
    play = (shared_data / "lm" / "tinyshakespeare.txt").read_text(encoding="utf-8")[-100_000:]
    for text in [play, *random_texts(200), "<s> </s> <unk> <|endoftext|>", "  a\n\n b\t\x00é"]:
        ids = tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


@pytest.mark.parity
def test_transformers_gives_the_same_ids_with_pieces_from_the_corpus(tmp_path, shared_data):
    """A vocabulary large enough for pieces of breaks, of spaces and of whole words."""
    transformers = pytest.importorskip("transformers")
    text = (shared_data / "lm" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = fit_tokenizer("sentencepiece", [text[:-100_000]], 2048)
    write_transformers_files(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for part in [text[-100_000:], *random_texts(500)]:
        ids = tokenizer.encode(part)
        assert theirs(part, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids) == part
