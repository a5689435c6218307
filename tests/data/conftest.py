"""Small folders of shards, written as ``lm.corpus`` writes them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lm.shards import Manifest, ShardFile, Split, TokenizerFacts, sha256, write_manifest

WriteShards = Callable[..., Path]
BOS, EOS = 1, 2


def random_documents(
    seed: int, count: int, longest: int = 40, vocab_size: int = 500
) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([[BOS], rng.integers(3, vocab_size, rng.integers(0, longest)), [EOS]])
        for _ in range(count)
    ]


@pytest.fixture
def make_documents() -> Callable[..., list[np.ndarray]]:
    return random_documents


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    def write(
        name: str,
        files: Sequence[Sequence[np.ndarray]],
        *,
        split: str = "train",
        dtype: str = "uint16",
        digest: str = "d" * 64,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        written = []
        for number, documents in enumerate(files):
            stem = f"{split}-{number:05d}"
            sizes = [d.size for d in documents]
            np.concatenate([np.empty(0), *documents]).astype(dtype).tofile(
                folder / f"{stem}.tokens"
            )
            np.cumsum([0, *sizes]).astype("uint64").tofile(folder / f"{stem}.documents")
            names = [json.dumps(f"{name}/{number}/{i}") + "\n" for i in range(len(documents))]
            (folder / f"{stem}.ids").write_text("".join(names), encoding="utf-8")
            written.append(
                ShardFile(
                    stem=stem,
                    tokens=sum(sizes),
                    documents=len(sizes),
                    text_bytes=sum(sizes),
                    sha256={
                        ending: sha256(folder / f"{stem}.{ending}")
                        for ending in ("tokens", "documents", "ids")
                    },
                )
            )
        facts = TokenizerFacts(digest=digest, vocab_size=500, bos=BOS, eos=EOS)
        write_manifest(
            folder,
            Manifest(
                format=1, dtype=dtype, tokenizer=facts, splits={split: Split(files=tuple(written))}
            ),
        )
        return folder

    return write
