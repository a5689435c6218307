import json

import numpy as np

from lm.corpus.write import SplitWriter
from lm.shards import sha256


def test_files_hold_the_documents_end_to_end(tmp_path):
    writer = SplitWriter(tmp_path, "train", "uint16", shard_tokens=5)
    documents = [np.arange(n, dtype=np.uint32) + n for n in (3, 2, 4, 1)]
    for i, ids in enumerate(documents):
        writer.add(f"d\n{i}", ids, text_bytes=10 * i)
    split = writer.close()
    assert [(f.stem, f.tokens, f.documents, f.text_bytes) for f in split.files] == [
        ("train-00000", 5, 2, 10),
        ("train-00001", 5, 2, 50),
    ]
    first, second = (np.fromfile(tmp_path / f"{f.stem}.tokens", "<u2") for f in split.files)
    assert np.concatenate([first, second]).tolist() == np.concatenate(documents).tolist()
    assert np.fromfile(tmp_path / "train-00001.documents", "<u8").tolist() == [0, 4, 5]
    names = (tmp_path / "train-00000.ids").read_text().splitlines()
    assert [json.loads(name) for name in names] == ["d\n0", "d\n1"]


def test_digests_are_those_of_the_files(tmp_path):
    writer = SplitWriter(tmp_path, "held_out", "uint32", shard_tokens=100)
    writer.add("a", np.asarray([70_000, 1]), 4)
    (file,) = writer.close().files
    for ending, digest in file.sha256.items():
        assert sha256(tmp_path / f"{file.stem}.{ending}") == digest
    assert np.fromfile(tmp_path / "held_out-00000.tokens", "<u4").tolist() == [70_000, 1]


def test_split_without_documents_has_no_files(tmp_path):
    assert SplitWriter(tmp_path, "train", "uint16", shard_tokens=5).close().files == ()
    assert not list(tmp_path.iterdir())
