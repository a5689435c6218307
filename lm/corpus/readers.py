"""Documents from files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lm.corpus.files import InputFile, find_files, open_bytes
from lm.corpus.parquet import read_rows
from lm.errors import CorpusError, did_you_mean

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Document:
    """A text and its name in the corpus."""

    id: str
    text: str


def read_documents(paths: Sequence[str], field: str = "text") -> Iterator[Document]:
    """The documents of files, folders, globs and ``embedded:NAME``, one at a time.

    A plain text file is one document, named by its path from the folder that was given.  A line
    of JSON or a row of Parquet is one; its name is its ``id`` or ``FILE:LINE``.  Records without
    any text are left out.  The order is that of the paths, sorted within folders.

    Raises:
        CorpusError: what is missing, empty, damaged, not UTF-8 or without the field; says where.
    """
    return _documents(find_files(paths), field)


def _documents(files: Sequence[InputFile], field: str) -> Iterator[Document]:
    readers = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
    for file in files:
        empty = True
        for document in readers[file.format](file, field):
            if document.text:
                empty = False
                yield document
        if empty:
            raise CorpusError(f"{file.path}: no text in this file. Fill it or leave it out.")


def _read_text(file: InputFile, _: str) -> Iterator[Document]:
    with open_bytes(file.path) as stream:
        content = stream.read()
    yield Document(file.name, _decode(content.removeprefix(_BOM), file, 1, 0))


def _read_jsonl(file: InputFile, field: str) -> Iterator[Document]:
    with open_bytes(file.path) as stream:
        offset = 0
        for number, line in enumerate(stream, start=1):
            text = _decode(line.removeprefix(_BOM) if number == 1 else line, file, number, offset)
            offset += len(line)
            if not text.strip():
                continue
            where = f"{file.path}:{number}"
            try:
                record = json.loads(text)
            except ValueError as error:
                raise CorpusError(
                    f"{where}: not JSON ({error}); the line begins {text[:40]!r}. Each line must "
                    f'hold one object such as {{"{field}": "..."}}.'
                ) from error
            yield _document(record, field, where, f"{file.name}:{number}")


def _read_parquet(file: InputFile, field: str) -> Iterator[Document]:
    for number, row in enumerate(read_rows(file.path, field), start=1):
        yield _document(row, field, f"{file.path}, row {number}", f"{file.name}:{number}")


def _document(record: object, field: str, where: str, name: str) -> Document:
    if not isinstance(record, Mapping):
        raise CorpusError(
            f"{where}: a {type(record).__name__}, not an object. "
            f'Each line must hold one such as {{"{field}": "..."}}.'
        )
    fields = cast("Mapping[str, Any]", record)
    if field not in fields:
        raise CorpusError(
            f"{where}: no field {field!r}; it has {', '.join(fields) or 'none'}. "
            f"{did_you_mean(field, fields)}Say which one holds the text with --field."
        )
    text, given = fields[field], fields.get("id")
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: field {field!r} holds {type(text).__name__}, not text. "
            "Say which field holds the text with --field."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where}: field {field!r} holds half a character (\\u{ord(text[error.start]):04x}), "
            "which UTF-8 cannot express. Remove it from the file."
        ) from error
    return Document(name if given is None or isinstance(given, (dict, list)) else str(given), text)


def _decode(content: bytes, file: InputFile, line: int, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise CorpusError(
            f"{file.path}: not UTF-8: line {line}, byte 0x{content[error.start]:02x} at offset "
            f"{offset + error.start:,}. Convert the file, for instance with: "
            "iconv -f latin1 -t utf-8"
        ) from error
