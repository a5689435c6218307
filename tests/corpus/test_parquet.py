import pytest

from lm.corpus import parquet
from lm.corpus.readers import Document, read_documents
from lm.errors import CorpusError


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "library", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"extra 'parquet'"):
        list(read_documents([str(tmp_path)]))


def test_rows_are_documents(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    writer = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["x\ny", None, "z"], "id": ["one", "two", None]})
    writer.write_table(table, path)
    assert list(read_documents([str(path)])) == [
        Document("one", "x\ny"),
        Document("a.parquet:3", "z"),
    ]
    with pytest.raises(CorpusError, match="no column 'body'; it has text, id"):
        list(read_documents([str(path)], field="body"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorpusError, match="damaged or not Parquet"):
        list(read_documents([str(path)]))
