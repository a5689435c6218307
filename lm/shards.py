"""The shard format: flat token files with document offsets, and the manifest that vouches for them.

A data set is one folder::

    manifest.json
    SPLIT-00000.tokens       uint16 or uint32, little endian, documents end to end
    SPLIT-00000.documents    uint64: where each document starts, then the total (documents + 1)
    SPLIT-00000.ids          the documents' own names, one JSON string a line

A stored document is ``BOS text... EOS``.  Splits are usually ``train`` and ``held_out``.  Written
by ``lm.corpus``, read by ``lm.data``; numpy only.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lm.config import from_plain, to_plain
from lm.errors import ConfigError, CorpusError

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """Which tokenizer made the ids."""

    digest: str
    vocab_size: int
    bos: int
    eos: int


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One token file with its offsets and names; ``stem`` is the file name without its ending."""

    stem: str
    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of the text, without BOS and EOS."""
    sha256: dict[str, str]
    """Digest by ending: tokens, documents, ids."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a data set, cut by document."""

    files: tuple[ShardFile, ...]

    @property
    def tokens(self) -> int:
        """Stored tokens, BOS and EOS among them."""
        return sum(f.tokens for f in self.files)

    @property
    def documents(self) -> int:
        """Stored documents."""
        return sum(f.documents for f in self.files)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text, without BOS and EOS."""
        return sum(f.text_bytes for f in self.files)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds."""

    format: int
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerFacts
    splits: dict[str, Split]


@dataclass(frozen=True)
class Documents:
    """The memory-mapped files of one split, in order."""

    tokens: tuple[np.ndarray, ...]
    starts: tuple[np.ndarray, ...]
    """For each file: where its documents start, then its total (uint64)."""
    split: Split


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in one step, last: a folder without it is not a data set."""
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(to_plain(manifest), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set.

    Raises:
        CorpusError: no such folder, no manifest, or one that cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise CorpusError(
            f"{folder}: the data folder {what}. Make one with: "
            "lm corpus tokenize INPUT --tokenizer DIR --out " + str(folder)
        )
    try:
        manifest = from_plain(Manifest, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (ValueError, ConfigError) as error:
        raise CorpusError(
            f"{path}: not a manifest of this format ({error}). Tokenise the corpus again."
        ) from error
    if manifest.format != FORMAT:
        raise CorpusError(
            f"{path}: format {manifest.format}, this version reads {FORMAT}. "
            "Tokenise the corpus again."
        )
    return manifest


def open_documents(folder: Path, split: str) -> tuple[Manifest, Documents]:
    """Map the files of a split into memory, sizes checked against the manifest.

    Raises:
        CorpusError: a split that is not there or empty; a file missing or of another size.
    """
    manifest = read_manifest(folder)
    if split not in manifest.splits:
        raise CorpusError(
            f"{folder}: no split {split!r}; it has {', '.join(manifest.splits)}. "
            "Name one of those, or tokenise with --held-out to cut one."
        )
    part = manifest.splits[split]
    if part.documents == 0:
        raise CorpusError(f"{folder}: split {split!r} holds no document.")
    tokens: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    for file in part.files:
        tokens.append(_map(folder / f"{file.stem}.tokens", np.dtype(manifest.dtype), file.tokens))
        starts.append(
            _map(folder / f"{file.stem}.documents", np.dtype("uint64"), file.documents + 1)
        )
    return manifest, Documents(tuple(tokens), tuple(starts), part)


def verify(folder: Path) -> None:
    """Compare every file with its digest.

    Raises:
        CorpusError: naming each file that differs.
    """
    wrong = [
        f"{file.stem}.{ending}"
        for part in read_manifest(folder).splits.values()
        for file in part.files
        for ending, digest in file.sha256.items()
        if sha256(folder / f"{file.stem}.{ending}") != digest
    ]
    if wrong:
        raise CorpusError(
            f"{folder}: these files are not what the manifest recorded: {', '.join(wrong)}. "
            "Tokenise the corpus again or copy it once more."
        )


def sha256(path: Path) -> str:
    """The hex digest of a file, or a word that matches none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    expected = count * dtype.itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size:,} bytes"
        raise CorpusError(
            f"{path}: {found}, the manifest says {expected:,}. "
            "Tokenise the corpus again or copy it once more."
        )
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype.newbyteorder("<"), mode="r", shape=(count,))
