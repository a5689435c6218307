"""A source without files, for smoke runs and for timing steps: learnable, and the same anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from lm.data.order import mix, permute
from lm.data.packing import count_windows
from lm.data.source import Piece
from lm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Documents of one length in which each id is followed by the same other one.

    The ids stand on one secret ring, and every document walks along it from a place of its own;
    a model learns it as a table of bigrams, and the loss goes to 0.
    """

    vocab_size: int
    seed: int = 0
    document_length: int = 256
    """Tokens of a document."""
    tokens: int = 2**24
    """Tokens of an epoch."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "document_length", "tokens"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} {getattr(self, name)}: must be at least 2.")

    def build(self, length: int, digest: str | None = None) -> "SyntheticSource":
        """Windows of ``length`` predictions; ids made of nothing fit every tokenizer."""
        del digest
        return SyntheticSource(self, length)


class SyntheticSource:
    """Windows of a ``Synthetic`` stream; the last one is padded."""

    def __init__(self, config: Synthetic, length: int):
        self._config = config
        self._length = length
        every = np.arange(config.vocab_size)
        ring = permute(every, config.vocab_size, np.full(every.shape, config.seed % 2**64, "u8"))
        self._ring = ring.astype(np.int32)

    @property
    def name(self) -> str:
        """The word "synthetic" and what sets it apart."""
        return f"synthetic:{self._config.vocab_size}:{self._config.seed}"

    @property
    def tokenizer(self) -> None:
        """There is none."""
        return None

    def __len__(self) -> int:
        """Windows of an epoch."""
        return count_windows(self._config.tokens, self._length)

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, "n W"], Int32[np.ndarray, "n W"]]:
        """The ids and segments of some windows, W = T + 1."""
        config = self._config
        place = indices[:, None] * self._length + np.arange(self._length + 1)
        document, column = np.divmod(place, config.document_length)
        seed = np.full(place.size, config.seed % 2**64, "u8")
        phase = mix(seed ^ mix(document.reshape(-1).astype("u8"))).reshape(place.shape)
        ids = self._ring[
            (phase % np.uint64(config.vocab_size) + column.astype("u8"))
            % np.uint64(config.vocab_size)
        ]
        segments = (document - document[:, :1] + 1).astype(np.int32)
        padding = place >= config.tokens
        ids[padding], segments[padding] = 0, 0
        return ids, segments

    def documents(self, index: int) -> list[Piece]:
        """What window ``index`` holds."""
        size = self._config.document_length
        begin = index * self._length
        end = min(begin + self._length + 1, self._config.tokens)
        return [
            Piece(d, max(begin - d * size, 0), min(end - d * size, size))
            for d in range(begin // size, -(-end // size))
        ]

    def names(self, documents: Sequence[int]) -> list[str]:
        """Their numbers as text."""
        return [str(document) for document in documents]
