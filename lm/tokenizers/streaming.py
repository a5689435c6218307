"""Ids to text while they come."""

from collections.abc import Sequence

from lm.tokenizers.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Decodes ids as they come; never emits part of a character.

    What ``push`` and ``flush`` returned, joined, is ``tokenizer.decode`` of all ids.  Only the
    ids since the last whole character are decoded again, so time is linear.  (Ids that are not
    UTF-8 are held back until a whole character follows; ``tokenizers`` decodes a run of byte
    tokens with an invalid one among them as a whole, and there alone the texts may differ.)
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        special = tokenizer.special
        self._silent = {special.bos, special.eos, special.pad}
        self._context: list[int] = []
        """Ids already emitted, kept since decoders treat the start of a text apart."""
        self._waiting: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        """Take more ids; the text that is now certain."""
        new = [int(i) for i in ids if i not in self._silent]
        if not new:
            return ""
        self._waiting += new
        text = self._text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        if self._tokenizer.decode(self._waiting):
            self._context = []
        self._context += self._waiting
        self._waiting = []
        return text

    def flush(self) -> str:
        """The rest, an unfinished character as U+FFFD; the decoder then starts anew."""
        text = self._text()
        self._context, self._waiting = [], []
        return text

    def _text(self) -> str:
        before = self._tokenizer.decode(self._context) if self._context else ""
        return self._tokenizer.decode(self._context + self._waiting)[len(before) :]
