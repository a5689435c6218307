"""Shards on disk as a source: windows over the memory-mapped token files, found by arithmetic."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from lm.data.packing import boundaries, count_windows, fill, segments_of
from lm.data.source import Piece
from lm.errors import ConfigError, CorpusError
from lm.shards import Documents, Manifest, TokenizerFacts, open_documents


@dataclass(frozen=True, kw_only=True)
class Shards:
    """One split of a folder of shards (``lm corpus tokenize`` makes one)."""

    path: str
    """The folder of the manifest."""
    split: str = "train"
    """The part of it to read."""

    def build(self, length: int, digest: str | None = None) -> "ShardSource":
        """Open the split as windows of ``length`` predictions; reads no token.

        Args:
            length: input positions T of a window.
            digest: the tokenizer that the ids must come from; None checks nothing.

        Raises:
            CorpusError: files missing, damaged or empty; made by another tokenizer.
        """
        folder = Path(self.path)
        manifest, documents = open_documents(folder, self.split)
        made_by = manifest.tokenizer.digest
        if digest is not None and digest != made_by:
            raise CorpusError(
                f"{folder}: made by the tokenizer {made_by[:12]}, but this run's is "
                f"{digest[:12]}. Tokenise the corpus with this tokenizer, or name the one that "
                "made it."
            )
        return ShardSource(self, length, manifest, documents)


class ShardSource:
    """Windows of one split.  They do not cross files; each file's last one is padded.

    So an epoch leaves no token out, and pads less than T tokens a file.
    """

    def __init__(self, config: Shards, length: int, manifest: Manifest, documents: Documents):
        if length < 1:
            raise ConfigError(f"length {length}: a window needs at least 1 position.")
        self._config = config
        self._length = length
        self._tokenizer = manifest.tokenizer
        # Plain views: slicing a memmap costs microseconds more, and a search among uint64 with
        # signed numbers would first copy them all to float64.
        self._tokens = [np.asarray(tokens) for tokens in documents.tokens]
        self._starts = [np.asarray(starts).view("<i8") for starts in documents.starts]
        self._stems = [file.stem for file in documents.split.files]
        folder = Path(config.path)
        for stem, starts, tokens in zip(self._stems, self._starts, self._tokens, strict=True):
            if starts[0] != 0 or starts[-1] != tokens.size:
                raise CorpusError(
                    f"{folder / stem}.documents: runs from {starts[0]:,} to {starts[-1]:,}, but "
                    f"the file holds tokens 0 to {tokens.size:,}. Tokenise the corpus again."
                )
        windows = [count_windows(tokens.size, length) for tokens in self._tokens]
        self._ends = np.cumsum(windows)
        """For each file: the windows up to and with it."""
        self._first_documents = np.cumsum([0, *(starts.size - 1 for starts in self._starts)])
        if len(self) == 0:
            raise CorpusError(
                f"{folder}: split {config.split!r} holds less than two tokens, so there is "
                "nothing to predict. Tokenise more text."
            )

    @property
    def name(self) -> str:
        """The folder and the split."""
        return f"{self._config.path}:{self._config.split}"

    @property
    def tokenizer(self) -> TokenizerFacts:
        """Which tokenizer made the ids, by the manifest."""
        return self._tokenizer

    def __len__(self) -> int:
        """Windows of an epoch."""
        return int(self._ends[-1])

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, "n W"], Int32[np.ndarray, "n W"]]:
        """The ids and segments of some windows, W = T + 1."""
        width = self._length + 1
        ids = np.empty((indices.size, width), np.int32)
        segments = np.empty((indices.size, width), np.int32)
        files = np.searchsorted(self._ends, indices, side="right")
        for file in np.unique(files).tolist():
            rows = np.flatnonzero(files == file)
            begin, end = self._spans(file, indices[rows])
            part = segments_of(*boundaries(self._starts[file][:-1], begin, end), width)
            if rows.size == indices.size:
                segments = part
                fill(ids, segments, self._tokens[file], begin, end)
            else:
                part_ids = np.empty_like(part)
                fill(part_ids, part, self._tokens[file], begin, end)
                ids[rows], segments[rows] = part_ids, part
        return ids, segments

    def documents(self, index: int) -> list[Piece]:
        """What window ``index`` holds; documents are numbered through the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        file = int(np.searchsorted(self._ends, index, side="right"))
        begins, ends = self._spans(file, np.array([index]))
        begin, end = int(begins[0]), int(ends[0])
        starts = self._starts[file]
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, end, side="left"))
        edges = starts[first : last + 1].tolist()
        return [
            Piece(
                int(self._first_documents[file]) + first + i,
                max(begin, start) - start,
                min(end, stop) - start,
            )
            for i, (start, stop) in enumerate(itertools.pairwise(edges))
        ]

    def names(self, documents: Sequence[int]) -> list[str]:
        """The documents' own names, read from the files of names in one pass each."""
        wanted = np.unique(np.asarray(documents, np.int64))
        files = np.searchsorted(self._first_documents, wanted, side="right") - 1
        found: dict[int, str] = {}
        for file in np.unique(files).tolist():
            first = int(self._first_documents[file])
            lines = {int(document) - first for document in wanted[files == file]}
            path = Path(self._config.path) / f"{self._stems[file]}.ids"
            try:
                with path.open(encoding="utf-8") as text:
                    for number, line in enumerate(itertools.islice(text, max(lines) + 1)):
                        if number in lines:
                            found[first + number] = json.loads(line)
            except (OSError, ValueError) as error:
                raise CorpusError(
                    f"{path}: cannot be read ({error}). Tokenise the corpus again or copy it "
                    "once more."
                ) from error
        missing = [document for document in wanted.tolist() if document not in found]
        if missing:
            raise CorpusError(
                f"{self.name}: documents {missing[:5]} have no name in the .ids files. "
                "Tokenise the corpus again or copy it once more."
            )
        return [found[int(document)] for document in documents]

    def _spans(self, file: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where windows begin and end in the stream of their file."""
        first = self._ends[file - 1] if file else 0
        begin = (indices - first) * self._length
        return begin, np.minimum(begin + self._length + 1, self._tokens[file].size)
