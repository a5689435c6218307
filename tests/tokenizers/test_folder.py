import errno

import pytest

from lm.errors import CorpusError, ResourceError
from lm.tokenizers.folder import written_whole


def test_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "a" / "out"
    with written_whole(out) as folder:
        (folder / "x").write_text("x")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["x"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_nothing_is_left_where_the_block_fails(tmp_path):
    def fail():
        with written_whole(tmp_path / "out") as folder:
            (folder / "x").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_full_disk_is_told(tmp_path):
    with pytest.raises(ResourceError, match="disk is full"), written_whole(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(CorpusError, match="cannot be written"),
        written_whole(tmp_path / "file/out"),
    ):
        pass
