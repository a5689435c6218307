import json
import logging

import numpy as np
import pytest

from lm.corpus.readers import read_documents
from lm.corpus.split import Tail
from lm.corpus.tokenise import tokenise
from lm.corpus.write import SplitWriter
from lm.errors import CorpusError, ResourceError
from lm.shards import open_documents, read_manifest, verify
from lm.tokenizers.bytes import ByteTokenizer
from lm.tokenizers.characters import CharacterTokenizer
from lm.tokenizers.load import load_tokenizer


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "in.jsonl"
    records = ({"id": f"d{i}", "text": f"text é {i}\n" * (i + 1)} for i in range(20))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def stored(folder, split) -> dict[str, list[int]]:
    """The ids of each stored document by its name."""
    _, documents = open_documents(folder, split)
    found = {}
    for file, tokens, starts in zip(
        documents.split.files, documents.tokens, documents.starts, strict=True
    ):
        names = (folder / f"{file.stem}.ids").read_text().splitlines()
        for name, a, b in zip(names, starts[:-1], starts[1:], strict=True):
            found[json.loads(name)] = tokens[int(a) : int(b)].tolist()
    return found


def test_every_document_is_stored_once_between_bos_and_eos(source, tmp_path):
    tokenizer, out = ByteTokenizer(), tmp_path / "out"
    manifest = tokenise([source], tokenizer, out, held_out=0.3, shard_tokens=200)
    both = [stored(out, split) for split in ("train", "held_out")]
    texts = {d.id: d.text for d in read_documents([source])}
    assert {**both[0], **both[1]} == {
        name: [256, *tokenizer.encode(text), 257] for name, text in texts.items()
    }
    assert not both[0].keys() & both[1].keys()
    assert len(manifest.splits["train"].files) > 1
    assert sum(s.text_bytes for s in manifest.splits.values()) == sum(
        len(text.encode()) for text in texts.values()
    )


def test_manifest_on_disk_vouches_for_the_files(source, tmp_path):
    manifest = tokenise([source], ByteTokenizer(), tmp_path / "out", held_out=("d3",))
    assert read_manifest(tmp_path / "out") == manifest
    verify(tmp_path / "out")
    facts = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert facts.digest == manifest.tokenizer.digest
    assert manifest.splits["held_out"].documents == 1


def test_twice_the_same_gives_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        tokenise([source], ByteTokenizer(), tmp_path / name, held_out=0.3)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(source, tmp_path, monkeypatch, size, dtype):
    monkeypatch.setattr(ByteTokenizer, "vocab_size", size)
    assert tokenise([source], ByteTokenizer(), tmp_path / "out").dtype == dtype
    assert stored(tmp_path / "out", "train")["d0"][-1] == 257


def test_tail_stores_both_ends_of_each_document(source, tmp_path):
    tokenise([source], ByteTokenizer(), tmp_path / "out", held_out=Tail(fraction=0.5))
    train, held = (stored(tmp_path / "out", split) for split in ("train", "held_out"))
    assert train.keys() == held.keys()
    whole = ByteTokenizer().decode([*train["d7"], *held["d7"]])
    assert whole == "text é 7\n" * 8


def test_progress_goes_up_to_the_bytes_of_the_corpus(source, tmp_path):
    seen: list[tuple[int, int]] = []
    tokenise([source], ByteTokenizer(), tmp_path / "out", progress=lambda *x: seen.append(x))
    assert seen[-1][0] == seen[-1][1] == sum(len(d.text.encode()) for d in read_documents([source]))


def test_used_folder_is_refused_and_left_alone(source, tmp_path):
    tokenise([source], ByteTokenizer(), tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(CorpusError, match="not empty"):
        tokenise([source], ByteTokenizer(), tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_bad_text_late_in_the_corpus_leaves_nothing(source, tmp_path):
    (tmp_path / "late.txt").write_bytes(b"\xff")
    with pytest.raises(CorpusError, match=r"late\.txt: not UTF-8"):
        tokenise([source, str(tmp_path / "late.txt")], ByteTokenizer(), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "late.txt"]


def test_full_disk_is_told_and_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SplitWriter, "add", full)
    with pytest.raises(ResourceError, match="disk is full"):
        tokenise([source], ByteTokenizer(), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_text_lost_to_the_tokenizer_is_warned_of(source, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        tokenise([source], CharacterTokenizer("tex 0123456789\n"), tmp_path / "out")
    assert "210 tokens are unknown" in caplog.text
    assert np.count_nonzero(np.asarray(stored(tmp_path / "out", "train")["d4"]) == 3) == 5
