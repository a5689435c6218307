"""What a SentencePiece model file says of itself.

The library's Python door tells neither the algorithm nor the normalisation, so the few fields
are read from the file (protocol buffers: sentencepiece_model.proto of the library).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Vocabulary, algorithm and normalisation."""

    pieces: tuple[Piece, ...]
    algorithm: str
    byte_fallback: bool
    space_after_word: bool
    normalisation: str
    normalises: bool
    """Whether text is changed besides the sign for spaces."""
    dummy_prefix: bool
    """Whether a space is put before every text."""
    removes_spaces: bool


def read_model(model: bytes) -> ModelFacts:
    """The facts of a model; the library has already judged it to be one."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normaliser: dict[int, int | bytes] = {}
    for number, value in _fields(model):
        if number == 1 and isinstance(value, bytes):
            fields = dict(_fields(value))
            text, score, kind = fields.get(1, b""), fields.get(2, bytes(4)), fields.get(3, NORMAL)
            if isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int):
                (number_score,) = struct.unpack("<f", score)
                pieces.append(Piece(text=text.decode("utf-8"), score=number_score, kind=kind))
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normaliser = dict(_fields(value))
    name = normaliser.get(1, b"")
    return ModelFacts(
        pieces=tuple(pieces),
        algorithm=ALGORITHMS.get(int(trainer.get(3, 1)), "unknown"),
        byte_fallback=bool(trainer.get(35, 0)),
        space_after_word=bool(trainer.get(24, 0)),
        normalisation=name.decode("utf-8") if isinstance(name, bytes) else "",
        normalises=bool(normaliser.get(2, b"")),
        dummy_prefix=bool(normaliser.get(3, 1)),
        removes_spaces=bool(normaliser.get(4, 1)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message: integers, or bytes of what has a length."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire)
        if length is None:
            length, at = _varint(message, at)
        yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
