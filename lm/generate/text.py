"""Text continued: encoding, streaming and stop strings around ``lm.generate.decode``."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lm.batch import Params
from lm.errors import ConfigError
from lm.generate.decode import Bounds, StoppedBy, generate
from lm.generate.sampling import Sampler
from lm.models.model import Model
from lm.tokenizers.streaming import StreamDecoder
from lm.tokenizers.tokenizer import Tokenizer

OnText = Callable[[int, str], None]
"""Hears of each piece of text (number of the prompt, text) as soon as it is certain."""


class Writer(NamedTuple):
    """A model that is ready to write."""

    model: Model
    params: Params
    tokenizer: Tokenizer
    context: int | None
    """Positions that the model has; None: no end."""


class Completion(NamedTuple):
    """The continuation of one prompt."""

    prompt: str
    text: str
    """What follows the prompt, up to the stop string if one came."""
    ids: list[int]
    """The ids that were drawn, those of a stop string among them, EOS not."""
    stopped_by: StoppedBy


def complete(
    writer: Writer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
) -> list[Completion]:
    """Continue texts; an empty one begins a new document.

    Args:
        writer: model, parameters and tokenizer.
        prompts: texts of any lengths.
        max_tokens: new tokens for each prompt at most.
        sampler: how tokens are drawn.
        seed: the choices for a prompt depend on it and the prompt's number alone.
        stop: strings before which a text ends.
        on_text: streaming; all its pieces for a prompt, joined, are the completion's text.

    Raises:
        ConfigError: a prompt longer than the context, or a value out of range.
    """
    if not all(stop):
        raise ConfigError("stop: an empty string stops everything at once. Leave it out.")
    tokenizer, special = writer.tokenizer, writer.tokenizer.special
    ids = [[special.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    lines = [_Line(tokenizer, start, tuple(stop)) for start in ids]

    def say(number: int, text: str) -> None:
        if text and on_text is not None:
            on_text(number, text)

    def on_token(number: int, token: int) -> bool:
        say(number, lines[number].push(token))
        return lines[number].stopped

    results = generate(
        writer.model,
        writer.params,
        bounds_of(tokenizer, writer.context),
        ids,
        max_tokens=max_tokens,
        sampler=sampler,
        seed=seed,
        on_token=on_token if stop or on_text is not None else None,
    )
    completions: list[Completion] = []
    for number, (prompt, line, result) in enumerate(zip(prompts, lines, results, strict=True)):
        if not stop and on_text is None:
            for token in result.ids:
                line.push(token)
        say(number, line.finish())
        ended = "stop" if line.stopped else result.stopped_by
        completions.append(Completion(prompt, line.text, result.ids, ended))
    return completions


def bounds_of(tokenizer: Tokenizer, context: int | None) -> Bounds:
    """What may be generated with a tokenizer: its ids, but no BOS, padding or unknown."""
    special = tokenizer.special
    silent = {special.bos, special.pad, special.unknown} - {special.eos, None}
    banned = tuple(sorted(i for i in silent if i is not None and 0 <= i < tokenizer.vocab_size))
    return Bounds(tokenizer.vocab_size, special.eos, banned, context)


class _Line:
    """The text of one sequence while it comes; holds back what may begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        # The prompt goes through first: decoders treat the start of a text apart.
        self._decoder = StreamDecoder(tokenizer)
        if not self._decoder.push(prompt):
            self._decoder.flush()
        self._stop = stop
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; the text that is now certain."""
        return self._take(self._decoder.push([token]))

    def finish(self) -> str:
        """The rest of the text."""
        if self.stopped:
            return ""
        said = self._take(self._decoder.flush())
        if not self.stopped:
            said += self._say(self._held)
        return said

    def _take(self, text: str) -> str:
        self._held += text
        places = [place for s in self._stop if (place := self._held.find(s)) >= 0]
        if places:
            self.stopped = True
            return self._say(self._held[: min(places)])
        possible = max((_overlap(self._held, s) for s in self._stop), default=0)
        return self._say(self._held[: len(self._held) - possible])

    def _say(self, text: str) -> str:
        self._held = self._held[len(text) :]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
