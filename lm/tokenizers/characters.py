"""Every character of a known set is a token."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.errors import CorpusError
from lm.tokenizers.bytes import FILE
from lm.tokenizers.tokenizer import Special

UNKNOWN = "\ufffd"
"""The text of the unknown id: the replacement character, so that a loss of text can be seen."""
UNKNOWN_ID = 3
NUM_SPECIAL = 4


@dataclass(frozen=True, kw_only=True)
class Characters:
    """The characters that ``lm tokenizer train --kind characters`` found in a corpus."""

    path: str
    """Folder with tokenizer_lm.json."""

    def build(self) -> "CharacterTokenizer":
        """The tokenizer.

        Raises:
            CorpusError: the file is missing or not of this kind.
        """
        path = Path(self.path) / FILE
        try:
            definition = json.loads(path.read_text(encoding="utf-8"))
            return CharacterTokenizer(definition["characters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(
                f"{path}: not a set of characters ({error}). Make one with: "
                f"lm tokenizer train INPUT --kind characters --out {self.path}"
            ) from error


class CharacterTokenizer:
    """Ids: BOS, EOS, padding, unknown, then the characters in the order given.

    ``decode(encode(text)) == text`` where every character is known; others read as U+FFFD.
    """

    def __init__(self, characters: str):
        if not characters or len(set(characters)) != len(characters):
            raise CorpusError(
                f"{len(characters)} characters, {len(set(characters))} of them different: a set "
                "of characters holds each one once. Train the tokenizer again."
            )
        self.characters = characters
        self.special = Special(bos=0, eos=1, pad=2, unknown=UNKNOWN_ID)
        self.texts = ["", "", "", UNKNOWN, *characters]
        """The text of each id."""
        points = _code_points(characters)
        # Past the greatest known character stands one unknown for all that come after it.
        self._table = np.full(int(points.max()) + 2, UNKNOWN_ID, np.uint32)
        self._table[points] = np.arange(NUM_SPECIAL, self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """The characters and four special ids."""
        return len(self.texts)

    @property
    def digest(self) -> str:
        """SHA-256 of what ``save`` writes."""
        return hashlib.sha256(self._definition().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """One id a character; the unknown id where it is not in the set."""
        return self._encode(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts."""
        return [self._encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The characters; special ids give nothing, but for the unknown one."""
        return "".join([self.texts[i] for i in ids])

    def save(self, folder: Path) -> None:
        """Write ``tokenizer_lm.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self._definition(), encoding="utf-8")

    def _encode(self, text: str) -> np.ndarray:
        return self._table[np.minimum(_code_points(text), len(self._table) - 1)]

    def _definition(self) -> str:
        return json.dumps({"kind": "characters", "characters": self.characters}) + "\n"


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
