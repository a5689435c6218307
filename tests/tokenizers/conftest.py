"""A little text with everything in it, and a tokenizer of every kind trained on it."""

from pathlib import Path

import pytest

from lm.tokenizers.huggingface import HuggingFace, HuggingFaceTokenizer
from lm.tokenizers.sentencepiece import SentencePiece, SentencePieceTokenizer
from lm.tokenizers.training import train_tokenizer

VERSE = (
    "KING HENRY V.\nOnce more unto the breach, dear friends, once more;\n"
    "  Or close the wall up with our English dead!\n\n"
    "CHORUS.\n\tFollow,  follow:\nGrapple your minds to sternage of this navy,\n\n\n"
)
HARD = [
    "",
    " ",
    "\n",
    "\n\n\n x",
    "  two  spaces  and trail ",
    "\ttab\tand\r\nreturn\x0b\x85\u2028",
    "héé 你好 🙂 \x00 e\u0301 ﬁ①Ａ",
    "<s> </s> <pad> <unk> <0x0A> <|endoftext|>",
    "▅ \x01 \ufffd",
    "  " * 40 + "deep",
    "breach," * 300,
]


def pytest_generate_tests(metafunc):
    if "hard" in metafunc.fixturenames:
        metafunc.parametrize("hard", HARD, ids=range(len(HARD)))


@pytest.fixture(scope="session")
def verse() -> str:
    return VERSE


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The folder of a trained tokenizer of each kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    sizes = {"sentencepiece": 360, "bpe": 320, "bytes": None, "characters": None}
    for kind, size in sizes.items():
        train_tokenizer(kind, [VERSE * 5, VERSE], size, root / kind)
    return {kind: root / kind for kind in sizes}


@pytest.fixture(scope="session")
def mistral(shared_data) -> SentencePieceTokenizer:
    """A model from elsewhere: 32,000 pieces, a space put before every text."""
    return SentencePiece(path=str(shared_data / "tokenizers" / "mistral")).build()


@pytest.fixture(scope="session")
def gpt2(shared_data) -> HuggingFaceTokenizer:
    """vocab.json and merges.txt of GPT-2."""
    return HuggingFace(path=str(shared_data / "tokenizers" / "gpt2")).build()
