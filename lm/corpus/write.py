"""Documents of ids -> the files of lm.shards."""

import hashlib
import json
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from lm.shards import ShardFile, Split


class SplitWriter:
    """Writes one split, document by document, in files of about ``shard_tokens`` tokens.

    Memory holds the document offsets of one file, nothing else.
    """

    def __init__(
        self, folder: Path, split: str, dtype: Literal["uint16", "uint32"], shard_tokens: int
    ):
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._files: list[ShardFile] = []
        self._shard: _Shard | None = None

    def add(self, name: str, ids: np.ndarray, text_bytes: int) -> None:
        """Store one document: its ids with BOS and EOS, and the bytes of its text."""
        if self._shard is None:
            self._shard = _Shard(self._folder, f"{self._split}-{len(self._files):05d}")
        self._shard.add(name, ids.astype(self._dtype), text_bytes)
        if self._shard.tokens >= self._shard_tokens:
            self._finish()

    def close(self) -> Split:
        """Finish the last file."""
        self._finish()
        return Split(files=tuple(self._files))

    def abandon(self) -> None:
        """Close what is open; the files are of no use."""
        if self._shard is not None:
            self._shard.close()

    def _finish(self) -> None:
        if self._shard is not None:
            self._files.append(self._shard.finish())
            self._shard = None


class _Shard:
    def __init__(self, folder: Path, stem: str):
        self._stem = stem
        self._tokens = _Hashed(folder / f"{stem}.tokens")
        self._ids = _Hashed(folder / f"{stem}.ids")
        self._offsets = _Hashed(folder / f"{stem}.documents")
        self._starts = [0]
        self._text_bytes = 0

    @property
    def tokens(self) -> int:
        return self._starts[-1]

    def add(self, name: str, ids: np.ndarray, text_bytes: int) -> None:
        self._tokens.write(ids.tobytes())
        self._ids.write((json.dumps(name) + "\n").encode())
        self._starts.append(self.tokens + len(ids))
        self._text_bytes += text_bytes

    def finish(self) -> ShardFile:
        self._offsets.write(np.asarray(self._starts, "<u8").tobytes())
        self.close()
        return ShardFile(
            stem=self._stem,
            tokens=self.tokens,
            documents=len(self._starts) - 1,
            text_bytes=self._text_bytes,
            sha256={
                "tokens": self._tokens.digest,
                "documents": self._offsets.digest,
                "ids": self._ids.digest,
            },
        )

    def close(self) -> None:
        for file in (self._tokens, self._ids, self._offsets):
            file.close()


class _Hashed:
    """A file that is digested as it is written."""

    def __init__(self, path: Path):
        self._file: BinaryIO = path.open("wb")
        self._sha256 = hashlib.sha256()

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)

    def close(self) -> None:
        self._file.close()

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()
