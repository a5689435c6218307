"""The contract of a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Special:
    """Ids with a meaning of their own; ``unknown`` is None where every text can be encoded."""

    bos: int
    eos: int
    pad: int
    unknown: int | None = None


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back.  ``encode`` adds no special token; documents get theirs when stored."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to ``vocab_size - 1``, special ones among them."""
        ...

    @property
    def special(self) -> Special:
        """The special ids."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what defines the tokenizer; equal digests give equal ids."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS and EOS."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts (uint32 each), as fast as the library can."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special ids give nothing."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files from which ``lm.tokenizers.load.load_tokenizer`` makes it again."""
        ...
