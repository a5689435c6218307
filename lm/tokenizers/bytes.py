"""Every UTF-8 byte is a token."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.tokenizers.tokenizer import Special

FILE = "tokenizer_lm.json"
"""What the kinds without a library of their own save."""
NUM_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """The 256 bytes, then BOS, EOS and padding: nothing to train, nothing unknown."""

    def build(self) -> "ByteTokenizer":
        """The tokenizer."""
        return ByteTokenizer()


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8.

    ``decode(encode(text)) == text`` for every text; bytes that are not UTF-8 read as U+FFFD.
    """

    vocab_size = NUM_BYTES + 3
    special = Special(bos=NUM_BYTES, eos=NUM_BYTES + 1, pad=NUM_BYTES + 2)

    @property
    def digest(self) -> str:
        """SHA-256 of what ``save`` writes."""
        return hashlib.sha256(self._definition().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode("utf-8"))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The bytes of many texts."""
        return [np.frombuffer(t.encode("utf-8"), np.uint8).astype(np.uint32) for t in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes; special ids give nothing."""
        return bytes(i for i in ids if i < NUM_BYTES).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write ``tokenizer_lm.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self._definition(), encoding="utf-8")

    def _definition(self) -> str:
        return json.dumps({"kind": "bytes"}) + "\n"
