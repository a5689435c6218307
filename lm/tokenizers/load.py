"""A tokenizer from its folder, whatever its kind."""

import json
from pathlib import Path

from lm.errors import CorpusError
from lm.tokenizers import bytes as byte_kind
from lm.tokenizers import huggingface, sentencepiece
from lm.tokenizers.characters import Characters
from lm.tokenizers.tokenizer import Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a folder holds.

    Where a folder has both a SentencePiece model and a tokenizer.json (as exported models do),
    the model is taken, unless tokenizer.json knows more ids.

    Raises:
        CorpusError: none of the files that are expected, or damaged ones.
    """
    if (folder / byte_kind.FILE).is_file():
        return _load_own(folder)
    found: list[Tokenizer] = []
    if (folder / sentencepiece.FILE).is_file():
        found.append(sentencepiece.SentencePiece(path=str(folder)).build())
    if (folder / huggingface.FILE).is_file() or (folder / "vocab.json").is_file():
        found.append(huggingface.HuggingFace(path=str(folder)).build())
    if not found:
        what = "holds no tokenizer" if folder.is_dir() else "is not a folder"
        raise CorpusError(
            f"{folder}: {what}. Expected one of {sentencepiece.FILE} (SentencePiece), "
            f"{huggingface.FILE} or vocab.json with merges.txt (Hugging Face), "
            f"{byte_kind.FILE} (bytes, characters). Make one with: "
            f"lm tokenizer train INPUT --kind sentencepiece --vocab-size 8192 --out {folder}"
        )
    return max(found, key=lambda tokenizer: tokenizer.vocab_size)


def _load_own(folder: Path) -> Tokenizer:
    file = folder / byte_kind.FILE
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{file}: damaged ({error!r}). Copy it again or train anew.") from error
    if kind == "bytes":
        return byte_kind.Bytes().build()
    if kind == "characters":
        return Characters(path=str(folder)).build()
    raise CorpusError(f"{file}: kind {kind!r} is not known. Known: bytes, characters.")
