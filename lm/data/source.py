"""The contract of a source: windows of one length, read by number."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32

from lm.shards import TokenizerFacts


class Piece(NamedTuple):
    """Tokens ``start`` to ``stop`` of one document, counted from its first."""

    document: int
    """The document's number in its source."""
    start: int
    stop: int


@runtime_checkable
class Source(Protocol):
    """Windows of T + 1 tokens, the last of which is there to be predicted only.

    Together the windows of an epoch hold every token as an input or a target once; what a window
    has beyond the end of the text is padding: id 0 in segment 0.  ``read`` may be called from
    several threads at once.
    """

    @property
    def name(self) -> str:
        """What people call it: a folder and a split, for instance."""
        ...

    @property
    def tokenizer(self) -> TokenizerFacts | None:
        """Which tokenizer made the ids; None where there was none."""
        ...

    def __len__(self) -> int:
        """Windows of an epoch."""
        ...

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, "n W"], Int32[np.ndarray, "n W"]]:
        """The ids and segments of some windows, W = T + 1; segments count from 1 in each row."""
        ...

    def documents(self, index: int) -> list[Piece]:
        """What window ``index`` holds; the piece at place s is the row's segment s + 1."""
        ...

    def names(self, documents: Sequence[int]) -> list[str]:
        """The documents' own names."""
        ...
