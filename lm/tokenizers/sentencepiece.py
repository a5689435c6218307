"""SentencePiece models (Kudo & Richardson 2018, arXiv:1808.06226)."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece

from lm.errors import CorpusError
from lm.tokenizers.model_proto import read_model
from lm.tokenizers.tokenizer import Special

FILE = "tokenizer.model"
_LINES = re.compile(r"[^\n]*\n+|[^\n]+")


@dataclass(frozen=True, kw_only=True)
class SentencePiece:
    """A trained SentencePiece model."""

    path: str
    """Folder with tokenizer.model, or a .model file."""

    def build(self) -> "SentencePieceTokenizer":
        """The tokenizer.

        Raises:
            CorpusError: the file is missing or not a SentencePiece model.
        """
        path = Path(self.path)
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise CorpusError(
                f"{file}: no SentencePiece model there. Give a folder with {FILE}, or make one: "
                f"lm tokenizer train INPUT --kind sentencepiece --vocab-size 8192 --out {path}"
            )
        return SentencePieceTokenizer(file.read_bytes(), str(file))


class SentencePieceTokenizer:
    """A SentencePiece model.

    ``decode(encode(text)) == text`` for models that this project trains (identity normalisation,
    byte fallback, no dummy prefix), with one exception of the format: U+2581 stands for a space
    and reads back as one.  Text such as ``<s>`` is ordinary text.  Models from elsewhere encode
    as their library does, normalisation and all.
    """

    def __init__(self, model: bytes, where: str = "the SentencePiece model"):
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise CorpusError(
                f"{where}: not a SentencePiece model ({error}). Copy it again or train a new one."
            ) from error
        self.model = model
        self.facts = read_model(model)
        processor = self.processor
        self.vocab_size: int = processor.get_piece_size()
        bos, eos, pad = processor.bos_id(), processor.eos_id(), processor.pad_id()
        if max(bos, eos) < 0:
            raise CorpusError(
                f"{where}: the model has neither a BOS nor an EOS piece, so documents cannot be "
                "told apart. Use a model trained with at least one of them."
            )
        eos = eos if eos >= 0 else bos
        self.special = Special(
            bos=bos if bos >= 0 else eos,
            eos=eos,
            pad=pad if pad >= 0 else eos,
            unknown=None if self.facts.byte_fallback else processor.unk_id(),
        )
        # Where no piece goes on after a line break, lines can be encoded apart with the same
        # ids: the library then needs neither time nor memory beyond a line's.
        self.by_line = not (
            self.facts.dummy_prefix
            or self.facts.normalises
            or self.facts.removes_spaces
            or any("\n" in piece.text.rstrip("\n") for piece in self.facts.pieces)
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the model file."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS and EOS."""
        if not self.by_line:
            return self.processor.encode(text)
        return list(chain.from_iterable(self.processor.encode(lines(text), num_threads=1)))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts, on all cores."""
        threads = os.cpu_count() or 1
        if not self.by_line:
            found = self.processor.encode(list(texts), num_threads=threads)
            return [np.asarray(ids, np.uint32) for ids in found]
        parts = [lines(text) for text in texts]
        found = iter(self.processor.encode(list(chain(*parts)), num_threads=threads))
        return [_joined(found, len(part)) for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special ids give nothing."""
        return self.processor.decode([int(i) for i in ids])

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.model``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(self.model)


def lines(text: str) -> list[str]:
    """The lines of a text, each with all the line breaks that follow it."""
    return _LINES.findall(text)


def _joined(found: Iterator[list[int]], count: int) -> np.ndarray:
    return np.fromiter(chain.from_iterable(next(found) for _ in range(count)), np.uint32)
