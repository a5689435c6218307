"""From what the user names to files, and from files to bytes, with errors that say where."""

import contextlib
import glob
import gzip
import io
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import zstandard

from lm.errors import CorpusError, did_you_mean

FORMATS: dict[str, Literal["text", "jsonl", "parquet"]] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".zst")
EMBEDDED = "embedded:"
_EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_BLOCK = 1 << 17


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file of text."""

    path: Path
    name: str
    """Its path from the folder that was named: the same wherever that folder lies."""
    format: Literal["text", "jsonl", "parquet"]


def find_files(paths: Sequence[str]) -> list[InputFile]:
    """The files that paths, folders, globs and ``embedded:NAME`` mean, each once.

    Paths keep the order given; within a folder or glob files are sorted.

    Raises:
        CorpusError: nothing there, or a file of unknown kind.
    """
    if not paths:
        raise CorpusError("no input was named. Give files, folders, globs or embedded:shakespeare.")
    found: dict[Path, InputFile] = {}
    for path in paths:
        for file in _find(path):
            found.setdefault(file.path.resolve(), file)
    return list(found.values())


def _find(given: str) -> Iterator[InputFile]:
    if given.startswith(EMBEDDED):
        yield _embedded(given)
        return
    path = Path(given)
    if path.is_file():
        yield _input_file(path, path.name)
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
        if not files:
            raise CorpusError(f"{given}: the folder holds no file. Put text in it.")
        yield from (_input_file(p, p.relative_to(path).as_posix()) for p in files)
    elif any(sign in given for sign in "*?["):
        files = sorted(p for p in map(Path, glob.glob(given, recursive=True)) if p.is_file())
        if not files:
            raise CorpusError(f"{given}: no file has such a name. Check the pattern.")
        root = _root(path)
        yield from (_input_file(p, p.relative_to(root).as_posix()) for p in files)
    else:
        raise _missing(path)


def _embedded(given: str) -> InputFile:
    name = given.removeprefix(EMBEDDED)
    path = _EMBEDDED_FOLDER / f"{name}.jsonl.zst"
    if not path.is_file():
        known = sorted(p.name.removesuffix(".jsonl.zst") for p in _EMBEDDED_FOLDER.glob("*.zst"))
        raise CorpusError(
            f"{given}: no such embedded corpus. {did_you_mean(name, known)}"
            f"Choose from: {', '.join(EMBEDDED + k for k in known)}."
        )
    return _input_file(path, path.name)


def _input_file(path: Path, name: str) -> InputFile:
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    if plain.suffix not in FORMATS or (plain.suffix == ".parquet" and plain != path):
        raise CorpusError(
            f"{path}: a file of unknown kind ({''.join(path.suffixes) or 'no suffix'}). Known: "
            f"{', '.join(FORMATS)}; text and JSON lines also with {' or '.join(COMPRESSED)}. "
            "Rename it, or name the files you mean by a glob such as 'FOLDER/**/*.txt'."
        )
    return InputFile(path=path, name=name, format=FORMATS[plain.suffix])


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _root(pattern: Path) -> Path:
    """The part of a glob before its first sign."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if any(sign in part for sign in "*?["):
            break
        parts.append(part)
    return Path(*parts)


def _missing(path: Path) -> CorpusError:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [p.name for p in folder.iterdir()]
    nearest = did_you_mean(path.name, names) if folder == path.parent else ""
    where = "" if folder == path.parent else f"The nearest folder that exists is {folder}. "
    return CorpusError(f"{path}: no such file or folder. {nearest}{where}Check the path.")


@contextlib.contextmanager
def open_bytes(path: Path) -> Generator[io.BufferedIOBase]:
    """The bytes of a file, unpacked as they are read.

    Raises:
        CorpusError: unreadable, or a packed file that is cut short or damaged.
    """
    try:
        with path.open("rb") as file:
            yield _unpack(file, path)
    except (EOFError, zstandard.ZstdError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(
            f"{path}: the packed file is cut short or damaged ({error}). "
            "Download or copy it again, or pack it anew."
        ) from error
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot be read ({error.strerror or error}). Check its permissions and disk."
        ) from error


def _unpack(file: io.BufferedReader, path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstd(file), _BLOCK)
    return file


class _Zstd(io.RawIOBase):
    """Zstandard frames; zstandard's own reader takes a file that is cut short for a whole one."""

    def __init__(self, file: io.BufferedReader):
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._ready:
            block = self._file.read(_BLOCK)
            if not block:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._ready = self._decompress(block)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self, block: bytes) -> bytes:
        parts: list[bytes] = []
        while block:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            parts.append(self._frame.decompress(block))
            block = b""
            if self._frame.eof:
                block, self._frame = self._frame.unused_data, None
        return b"".join(parts)
