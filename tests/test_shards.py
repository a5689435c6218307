"""A data set reads back as written, and whatever is wrong with one is told by its file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm.errors import CorpusError
from lm.shards import (
    FORMAT,
    Manifest,
    ShardFile,
    Split,
    TokenizerFacts,
    open_documents,
    read_manifest,
    sha256,
    verify,
    write_manifest,
)

TOKENS = [[1, 5, 6, 2, 1, 7, 2], [1, 9, 2]]
STARTS = [[0, 4, 7], [0, 3]]


def write_set(folder: Path, dtype: str) -> Manifest:
    files: list[ShardFile] = []
    for i, (tokens, starts) in enumerate(zip(TOKENS, STARTS, strict=True)):
        stem = f"train-{i:05d}"
        np.asarray(tokens, dtype).tofile(folder / f"{stem}.tokens")
        np.asarray(starts, "uint64").tofile(folder / f"{stem}.documents")
        (folder / f"{stem}.ids").write_text('"name"\n' * (len(starts) - 1))
        digests = {e: sha256(folder / f"{stem}.{e}") for e in ("tokens", "documents", "ids")}
        files.append(
            ShardFile(
                stem=stem,
                tokens=len(tokens),
                documents=len(starts) - 1,
                text_bytes=10,
                sha256=digests,
            )
        )
    manifest = Manifest(
        format=FORMAT,
        dtype=dtype,
        tokenizer=TokenizerFacts(digest="d", vocab_size=10, bos=1, eos=2),
        splits={"train": Split(files=tuple(files)), "held_out": Split(files=())},
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_data_set_reads_back_as_written(tmp_path, dtype):
    manifest = write_set(tmp_path, dtype)
    again, documents = open_documents(tmp_path, "train")
    assert again == manifest
    assert [tokens.tolist() for tokens in documents.tokens] == TOKENS
    assert [starts.tolist() for starts in documents.starts] == STARTS
    assert all(tokens.dtype == dtype for tokens in documents.tokens)
    assert all(isinstance(tokens, np.memmap) for tokens in documents.tokens)
    verify(tmp_path)


def test_counts_of_a_split_are_sums_over_its_files(tmp_path):
    split = write_set(tmp_path, "uint16").splits["train"]
    assert (split.tokens, split.documents, split.text_bytes) == (10, 3, 20)


def test_no_file_can_be_written_through_the_map(tmp_path):
    write_set(tmp_path, "uint16")
    tokens = open_documents(tmp_path, "train")[1].tokens[0]
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 3


def test_missing_folder_or_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(CorpusError, match=r"does not exist.*lm corpus tokenize"):
        read_manifest(tmp_path / "none")
    with pytest.raises(CorpusError, match=r"no manifest\.json.*lm corpus tokenize"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"formt": 1}'])
def test_damaged_manifest_is_told(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CorpusError, match=r"manifest\.json: not a manifest"):
        read_manifest(tmp_path)


def test_manifest_of_another_format_is_told(tmp_path):
    write_manifest(tmp_path, replace(write_set(tmp_path, "uint16"), format=FORMAT + 1))
    with pytest.raises(CorpusError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        read_manifest(tmp_path)


def test_unknown_and_empty_splits_are_told(tmp_path):
    write_set(tmp_path, "uint16")
    with pytest.raises(CorpusError, match="no split 'test'; it has train, held_out"):
        open_documents(tmp_path, "test")
    with pytest.raises(CorpusError, match="'held_out' holds no document"):
        open_documents(tmp_path, "held_out")


@pytest.mark.parametrize("ending", ["tokens", "documents"])
def test_file_missing_or_of_another_size_is_told_before_it_is_read(tmp_path, ending):
    write_set(tmp_path, "uint16")
    path = tmp_path / f"train-00001.{ending}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(
        CorpusError, match=rf"{path.name}: has {len(whole) - 2} bytes.*{len(whole)}"
    ):
        open_documents(tmp_path, "train")
    path.unlink()
    with pytest.raises(CorpusError, match=rf"{path.name}: is missing"):
        open_documents(tmp_path, "train")


@pytest.mark.parametrize("ending", ["tokens", "documents", "ids"])
def test_one_flipped_bit_is_found_and_named(tmp_path, ending):
    write_set(tmp_path, "uint16")
    path = tmp_path / f"train-00000.{ending}"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=rf"recorded: {path.name}\. "):
        verify(tmp_path)


def test_missing_file_is_named_by_verify(tmp_path):
    write_set(tmp_path, "uint16")
    (tmp_path / "train-00001.ids").unlink()
    with pytest.raises(CorpusError, match=r"recorded: train-00001\.ids\. "):
        verify(tmp_path)


def test_manifest_replaces_the_old_one_in_one_step(tmp_path):
    manifest = write_set(tmp_path, "uint16")
    write_manifest(tmp_path, replace(manifest, dtype="uint32"))
    assert json.loads((tmp_path / "manifest.json").read_text())["dtype"] == "uint32"
    assert not list(tmp_path.glob("*.tmp"))
