import gzip

import pytest
import zstandard

from lm.corpus.files import find_files, open_bytes
from lm.errors import CorpusError


def names(*paths: str) -> list[str]:
    return [file.name for file in find_files(paths)]


@pytest.fixture
def tree(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.jsonl", "deep/d.md.gz", ".hidden/e.txt", ".f"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path / "root"


def test_folders_are_read_in_depth_and_in_order(tree):
    assert names(str(tree)) == ["a.txt", "b.txt", "deep/c.jsonl", "deep/d.md.gz"]


def test_globs_name_files_from_their_fixed_part(tree):
    assert names(f"{tree}/**/*.jsonl") == ["deep/c.jsonl"]
    assert names(f"{tree}/*.txt") == ["a.txt", "b.txt"]


def test_a_file_named_twice_is_read_once_where_it_came_first(tree):
    assert names(str(tree / "b.txt"), str(tree)) == [
        "b.txt",
        "a.txt",
        "deep/c.jsonl",
        "deep/d.md.gz",
    ]


def test_names_do_not_depend_on_where_the_folder_lies(tree, tmp_path):
    before = names(str(tree))
    tree.rename(tmp_path / "moved")
    assert names(str(tmp_path / "moved")) == before


def test_missing_path_names_the_nearest(tree):
    with pytest.raises(CorpusError, match=r"Did you mean 'a\.txt'"):
        find_files([str(tree / "aa.txt")])
    with pytest.raises(CorpusError, match=r"nearest folder that exists is .*root"):
        find_files([str(tree / "no" / "such" / "a.txt")])


def test_file_of_unknown_kind_is_told_with_the_known_ones(tree):
    (tree / "deep" / "picture.png").write_text("x")
    with pytest.raises(CorpusError, match=r"picture\.png.*\(\.png\).*\.txt.*\.jsonl"):
        find_files([str(tree)])


def test_nothing_found_is_told(tmp_path):
    for wrong in ([], [str(tmp_path)], [f"{tmp_path}/*.txt"], ["embedded:shakespear"]):
        with pytest.raises(CorpusError):
            find_files(wrong)


def test_embedded_corpus_is_found_by_name():
    assert names("embedded:shakespeare") == ["shakespeare.jsonl.zst"]
    with pytest.raises(CorpusError, match="Did you mean 'shakespeare'"):
        find_files(["embedded:shakespear"])


def read(path) -> bytes:
    with open_bytes(path) as stream:
        return b"".join(stream)


PACKERS = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
CONTENT = bytes(range(256)) * 4000


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files_are_unpacked_over_frames(tmp_path, suffix):
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(PACKERS[suffix](CONTENT) + PACKERS[suffix](b"tail"))
    assert read(path) == CONTENT + b"tail"


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_packed_file_cut_short_is_told(tmp_path, suffix, keep):
    packed = PACKERS[suffix](CONTENT)
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(CorpusError, match=r"x\.txt.*cut short"):
        read(path)


@pytest.mark.parametrize("suffix", PACKERS)
def test_file_that_is_not_packed_is_told(tmp_path, suffix):
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(b"plain text, whatever the name says")
    with pytest.raises(CorpusError, match="damaged"):
        read(path)
