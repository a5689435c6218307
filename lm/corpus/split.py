"""Which documents are trained on and which are held out."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lm.corpus.readers import Document
from lm.errors import ConfigError, CorpusError, did_you_mean

TRAIN, HELD_OUT = "train", "held_out"
_NAMES_KEPT = 10_000


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Hold out the end of every document: the last ``fraction`` of its characters."""

    fraction: float

    def __post_init__(self):
        _check(self.fraction)


HeldOut = float | tuple[str, ...] | Tail
"""A fraction of the documents, the names of some, or the end of each."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """What a first pass over a corpus found, and how it is divided."""

    documents: int
    text_bytes: int
    held_out: HeldOut

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that there are."""
        return (TRAIN,) if self.held_out in (0, ()) else (TRAIN, HELD_OUT)

    def parts(self, document: Document) -> Iterator[tuple[str, Document]]:
        """The document, or its two parts, each with its split."""
        if not isinstance(self.held_out, Tail):
            yield (HELD_OUT if self.holds_out(document.id) else TRAIN), document
            return
        end = int(len(document.text) * (1 - self.held_out.fraction))
        for split, text in ((TRAIN, document.text[:end]), (HELD_OUT, document.text[end:])):
            if text:
                yield split, Document(document.id, text)

    def holds_out(self, name: str) -> bool:
        """Whether the whole document of this name is held out."""
        if isinstance(self.held_out, tuple):
            return name in self.held_out
        return not isinstance(self.held_out, Tail) and place_of(name) < self.held_out


def divide(documents: Iterable[Document], held_out: HeldOut) -> Division:
    """Read a corpus once and say how it is divided.

    With a fraction, a document is held out by a hash of its name: the choice stays when the
    corpus grows.  Where that leaves one side empty the nearest document changes sides, and of a
    single document the end is held out.

    Raises:
        ConfigError: a fraction that is none.
        CorpusError: no such document, or nothing left to train on.
    """
    if isinstance(held_out, (int, float)) and held_out != 0:
        _check(held_out)
    whole = Division(documents=0, text_bytes=0, held_out=held_out)
    count = size = chosen = 0
    first, last = (2.0, ""), (-1.0, "")
    names: dict[str, None] = {}
    missing = set(held_out) if isinstance(held_out, tuple) else set[str]()
    for document in documents:
        count += 1
        size += len(document.text.encode("utf-8"))
        chosen += whole.holds_out(document.id)
        missing.discard(document.id)
        if len(names) < _NAMES_KEPT:
            names[document.id] = None
        place = (place_of(document.id), document.id)
        first, last = min(first, place), max(last, place)
    if missing:
        raise _not_found(sorted(missing), list(names))
    if isinstance(held_out, tuple) and chosen == count:
        raise CorpusError(
            f"held_out: every one of the {count} documents is held out, none is left to train on. "
            "Hold out fewer."
        )
    if isinstance(held_out, (int, float)) and held_out > 0:
        held_out = _never_empty(held_out, first, last, count=count, chosen=chosen)
    return Division(documents=count, text_bytes=size, held_out=held_out)


def place_of(name: str) -> float:
    """Where a name falls in [0, 1), as good as at random and for ever the same."""
    return (
        int.from_bytes(hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()[:6], "big")
        / 2**48
    )


def _never_empty(
    fraction: float, first: tuple[float, str], last: tuple[float, str], *, count: int, chosen: int
) -> HeldOut:
    if first[1] == last[1]:
        return Tail(fraction=fraction)
    if chosen == 0:
        return (first[1],)
    if chosen == count:
        return last[0]  # all are held out but the last
    return fraction


def _check(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ConfigError(
            f"held_out: {fraction} is no fraction. Give a number between 0 and 1, "
            "or the names of documents."
        )


def _not_found(wanted: list[str], names: list[str]) -> CorpusError:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return CorpusError(
        f"held_out: no document is named {', '.join(map(repr, wanted))}. "
        f"{did_you_mean(wanted[0], names)}The corpus has {listed}."
    )
