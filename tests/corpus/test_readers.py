import json

import pytest

from lm.corpus.readers import Document, read_documents
from lm.errors import CorpusError


def read(*paths, **options) -> list[Document]:
    return list(read_documents([str(path) for path in paths], **options))


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_text_file_is_one_document_kept_to_the_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("  é\r\n\n\tx ".encode())
    assert read(path) == [Document("a.txt", "  é\r\n\n\tx ")]


def test_mark_of_byte_order_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    lines = tmp_path / "b.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf{"text": "d"}\n')
    assert [d.text for d in read(path, lines)] == ["abc", "d"]


def test_lines_are_named_by_id_or_by_place(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", {"text": "x", "id": "one"}, {"text": "y"}, {"text": "z", "id": 3}
    )
    assert read(path) == [Document("one", "x"), Document("a.jsonl:2", "y"), Document("3", "z")]


def test_another_field_can_hold_the_text(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"body": "x"})
    assert read(path, field="body") == [Document("a.jsonl:1", "x")]


def test_blank_lines_and_records_without_text_are_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": ""}\n  \n{"text": null}\n{"text": "x"}')
    assert read(path) == [Document("a.jsonl:5", "x")]


def test_documents_are_read_one_at_a_time(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": "x"})
    with path.open("a") as file:
        file.write("{broken\n")
    documents = read_documents([str(path)])
    assert next(documents).text == "x"
    with pytest.raises(CorpusError, match=r"a\.jsonl:2: not JSON"):
        next(documents)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_empty_file_is_told(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(CorpusError, match=rf"{name}: no text"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "before", "line", "offset"),
    [("a.txt", b"one\ntwo ", 2, 8), ("a.jsonl", b'{"text": "x"}\n{"text": "', 2, 24)],
)
def test_bytes_that_are_not_utf8_are_told_with_their_place(tmp_path, name, before, line, offset):
    (tmp_path / name).write_bytes(before + b'\xe9t\xe9"}\n')
    with pytest.raises(
        CorpusError, match=rf"{name}: not UTF-8: line {line}, byte 0xe9 at offset {offset}"
    ):
        read(tmp_path / name)


def test_missing_field_names_those_there_are(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"txt": "x", "id": 1})
    with pytest.raises(CorpusError, match=r"a\.jsonl:1: no field 'text'; it has txt, id.*'txt'"):
        read(path)


@pytest.mark.parametrize("record", [["x"], "x", 3, {"text": 3}, {"text": ["x"]}])
def test_records_of_another_shape_are_told(tmp_path, record):
    path = write_lines(tmp_path / "a.jsonl", record)
    with pytest.raises(CorpusError, match=r"a\.jsonl:1"):
        read(path)


def test_half_a_character_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ab\\ud800"}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl:1: .*ud800"):
        read(tmp_path / "a.jsonl")


def test_embedded_shakespeare_has_its_works():
    documents = {d.id: d.text for d in read("embedded:shakespeare")}
    assert len(documents) == 42
    assert sum(len(text) for text in documents.values()) == 5_057_198
    assert documents["macbeth_gut.txt"].startswith("MACBETH\n\nby William Shakespeare\n")
