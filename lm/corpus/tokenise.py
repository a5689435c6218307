"""Text -> a folder of token shards."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lm.corpus.readers import Document, read_documents
from lm.corpus.split import HeldOut, Tail, divide
from lm.corpus.write import SplitWriter
from lm.shards import FORMAT, Manifest, TokenizerFacts, write_manifest
from lm.tokenizers.folder import refuse_used, written_whole
from lm.tokenizers.tokenizer import Tokenizer

TOKENIZER = "tokenizer"
"""The folder, within a data set, of the tokenizer that made it."""

_logger = logging.getLogger(__name__)
_BATCH_CHARACTERS = 1_000_000


def tokenise(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    out: Path,
    *,
    held_out: float | Collection[str] | Tail = 0.0,
    field: str = "text",
    progress: Callable[[int, int], None] | None = None,
    shard_tokens: int = 2**27,
) -> Manifest:
    """Write the documents of ``inputs`` as a data set (``lm.shards``), the tokenizer beside it.

    The corpus is read twice: once to check it and to choose what is held out, then to encode it
    in batches.  Nothing is left behind where anything fails.

    Args:
        inputs: Files, folders, globs, ``embedded:NAME``.
        tokenizer: Makes the ids; saved in ``out/tokenizer``.
        out: A new or empty folder.
        held_out: A fraction of the documents, names of documents, or the end of each.  With 0
            there is no split ``held_out``.
        field: Which field of a record holds the text.
        progress: Called with the UTF-8 bytes done and their total.
        shard_tokens: A file is closed when it has so many tokens or more.

    Raises:
        CorpusError: a corpus that cannot be read, or ``out`` that is used or cannot be written.
        ResourceError: the disk is full.
    """
    refuse_used(out)
    choice: HeldOut = held_out if isinstance(held_out, (int, float, Tail)) else tuple(held_out)
    division = divide(read_documents(inputs, field), choice)
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    special, done, unknown = tokenizer.special, 0, 0
    with written_whole(out) as folder, contextlib.ExitStack() as stack:
        writers: dict[str, SplitWriter] = {}
        for split in division.splits:
            writers[split] = SplitWriter(folder, split, dtype, shard_tokens)
            stack.callback(writers[split].abandon)
        parts = (part for d in read_documents(inputs, field) for part in division.parts(d))
        for batch in _batches(parts):
            encoded = tokenizer.encode_batch([document.text for _, document in batch])
            for (split, document), ids in zip(batch, encoded, strict=True):
                size = len(document.text.encode("utf-8"))
                stored = np.concatenate([[special.bos], ids, [special.eos]])
                writers[split].add(document.id, stored, size)
                done += size
                if special.unknown is not None:
                    unknown += int(np.count_nonzero(ids == special.unknown))
            if progress is not None:
                progress(done, division.text_bytes)
        manifest = Manifest(
            format=FORMAT,
            dtype=dtype,
            tokenizer=TokenizerFacts(
                digest=tokenizer.digest,
                vocab_size=tokenizer.vocab_size,
                bos=special.bos,
                eos=special.eos,
            ),
            splits={split: writer.close() for split, writer in writers.items()},
        )
        tokenizer.save(folder / TOKENIZER)
        write_manifest(folder, manifest)
    if unknown:
        _logger.warning("%s: %s tokens are unknown to the tokenizer", out, f"{unknown:,}")
    return manifest


def _batches(
    parts: Iterable[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
    """Groups of documents of about the same size in characters, one at the least."""
    batch: list[tuple[str, Document]] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part[1].text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
