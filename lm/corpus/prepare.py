"""Everything a run needs of a corpus, made once and kept under a digest of what it is made of."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lm.config import to_plain
from lm.corpus.files import find_files
from lm.corpus.readers import read_documents
from lm.corpus.split import TRAIN, HeldOut, divide
from lm.corpus.tokenise import TOKENIZER, tokenise
from lm.errors import ConfigError, CorpusError, did_you_mean
from lm.shards import FORMAT, open_documents, read_manifest, sha256
from lm.tokenizers.bytes import Bytes
from lm.tokenizers.characters import Characters
from lm.tokenizers.huggingface import HuggingFace
from lm.tokenizers.sentencepiece import SentencePiece
from lm.tokenizers.tokenizer import Tokenizer
from lm.tokenizers.training import Kind, fit_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer:
    """A tokenizer trained on the training documents."""

    algorithm: Kind = "sentencepiece"
    """See lm.tokenizers.training."""
    vocab_size: int | None = None
    """Ids in all; bytes and characters know theirs."""

    def __post_init__(self):
        known: tuple[str, ...] = get_args(Kind)
        if self.algorithm not in known:
            raise ConfigError(
                f"algorithm: {self.algorithm!r} is no tokenizer. "
                f"{did_you_mean(self.algorithm, known)}Choose from: {', '.join(known)}."
            )
        if self.vocab_size is None and self.algorithm in ("sentencepiece", "bpe"):
            raise ConfigError(f"vocab_size: {self.algorithm} needs one, for instance 8192.")


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Text -> tokenizer and shards, before a run."""

    sources: tuple[str, ...]
    """Files, folders, globs, ``embedded:NAME``."""
    tokenizer: TrainTokenizer | SentencePiece | HuggingFace | Characters | Bytes
    """One to train, or one that is there."""
    held_out: HeldOut = 0.0
    """Names of documents, a fraction of them, or the end of each; never trained on."""
    field: str = "text"
    """Which field of a record holds the text."""
    folder: str = "data"
    """Where prepared data sets are kept, each in a folder of its own."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A data set (``lm.shards``) with its tokenizer."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.folder / TOKENIZER


def prepared_folder(config: Prepare) -> Path:
    """Where ``prepare`` puts its result; the name is a digest of the settings and the inputs.

    Raises:
        CorpusError: an input that is missing.
    """
    return _folder(config, _given(config))


def prepare(config: Prepare, say: Callable[[str], None] = lambda _: None) -> Prepared:
    """Make the data set of a config, or find it where it is already whole.

    A folder that is not whole is made again.  The tokenizer is trained on the training split
    alone.

    Raises:
        ConfigError, CorpusError, ResourceError: as ``fit_tokenizer`` and ``tokenise`` do.
    """
    tokenizer = _given(config)
    folder = _folder(config, tokenizer)
    if _whole(folder):
        say(f"data       {folder} (prepared before)")
        return Prepared(folder=folder)
    if folder.exists():
        shutil.rmtree(folder)
    if tokenizer is None:
        tokenizer = _train(config)
        say(f"tokenizer  {tokenizer.vocab_size:,} ids, trained on the training documents")
    try:
        manifest = tokenise(
            config.sources, tokenizer, folder, held_out=config.held_out, field=config.field
        )
    except CorpusError:
        if _whole(folder):  # another process was faster
            return Prepared(folder=folder)
        raise
    for name, split in manifest.splits.items():
        say(
            f"data       {name}: {split.documents:,} documents, {split.text_bytes / 1e6:.2f} MB, "
            f"{split.tokens:,} tokens in {folder}"
        )
    return Prepared(folder=folder)


def _given(config: Prepare) -> Tokenizer | None:
    kind = config.tokenizer
    return None if isinstance(kind, TrainTokenizer) else kind.build()


def _train(config: Prepare) -> Tokenizer:
    kind = config.tokenizer
    if not isinstance(kind, TrainTokenizer):
        return kind.build()

    def read():
        return read_documents(config.sources, config.field)

    parts = divide(read(), config.held_out).parts
    texts = (part.text for document in read() for split, part in parts(document) if split == TRAIN)
    return fit_tokenizer(kind.algorithm, texts, kind.vocab_size)


def _folder(config: Prepare, tokenizer: Tokenizer | None) -> Path:
    inputs = [(file.name, sha256(file.path)) for file in find_files(config.sources)]
    settings = {
        "format": FORMAT,
        "inputs": inputs,
        "tokenizer": to_plain(config.tokenizer) if tokenizer is None else tokenizer.digest,
        "held_out": to_plain(config.held_out),
        "field": config.field,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path(config.folder) / digest[:16]


def _whole(folder: Path) -> bool:
    try:
        for split in read_manifest(folder).splits:
            open_documents(folder, split)
    except CorpusError:
        return False
    return (folder / TOKENIZER).is_dir()
