"""Tokenizers from text."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lm.errors import ConfigError, CorpusError
from lm.tokenizers.bytes import NUM_BYTES, ByteTokenizer
from lm.tokenizers.characters import NUM_SPECIAL, UNKNOWN, CharacterTokenizer, count_characters
from lm.tokenizers.folder import refuse_used, written_whole
from lm.tokenizers.huggingface import HuggingFaceTokenizer
from lm.tokenizers.sentencepiece import SentencePieceTokenizer
from lm.tokenizers.tokenizer import Special, Tokenizer

Kind = Literal["sentencepiece", "bpe", "bytes", "characters"]

SAMPLE_CHARACTERS = 2**27
"""Of a larger corpus an evenly spread part of at most this many characters is learned from."""

_BOUNDARY = "\x01"
_RESERVED = dict.fromkeys(map(ord, "\x00\x01\t\u2585"))
"""The trainer skips sentences with these; the model spells them in bytes."""
_CHUNK = re.compile(r"[^\n]{1,1000}(?=\s|\Z)\n{0,1000}|[^\n]{1,1000}|\n{1,1000}")


def train_tokenizer(
    kind: Kind, texts: Iterable[str], vocab_size: int | None, folder: Path
) -> Tokenizer:
    """Train a tokenizer, write it to ``folder`` and give it back.

    The same texts give the same tokenizer.  ``sentencepiece`` is byte-pair encoding with byte
    fallback, in which a line break may end a piece ("," and the break are one) and text comes
    back exactly; ``bpe`` is GPT-2's byte-level encoding.  ``bytes`` learns nothing and takes no
    ``vocab_size``; for ``characters`` None keeps every character.

    Raises:
        ConfigError: a vocabulary size that the kind or the text cannot give; says the range.
        CorpusError: no text, or a folder that already holds something.
    """
    refuse_used(folder)
    tokenizer = fit_tokenizer(kind, texts, vocab_size)
    with written_whole(folder) as temporary:
        tokenizer.save(temporary)
    return tokenizer


def fit_tokenizer(kind: Kind, texts: Iterable[str], vocab_size: int | None) -> Tokenizer:
    """What ``train_tokenizer`` trains, in memory."""
    if kind == "bytes":
        return _bytes(vocab_size)
    if kind == "characters":
        return _characters(texts, vocab_size)
    if vocab_size is None:
        raise ConfigError(f"vocab_size: {kind} needs one. Give for instance --vocab-size 8192.")
    if kind == "sentencepiece":
        return _sentencepiece(texts, vocab_size)
    return _bpe(texts, vocab_size)


def _bytes(vocab_size: int | None) -> ByteTokenizer:
    tokenizer = ByteTokenizer()
    if vocab_size not in (None, tokenizer.vocab_size):
        raise ConfigError(
            f"vocab_size: bytes has always {tokenizer.vocab_size} ids (256 bytes, BOS, EOS, "
            f"padding), not {vocab_size}. Leave the size out."
        )
    return tokenizer


def _characters(texts: Iterable[str], vocab_size: int | None) -> CharacterTokenizer:
    counts = count_characters(texts)
    counts.pop(UNKNOWN, None)
    if not counts:
        raise CorpusError("the text to train on is empty. Give text with at least one character.")
    largest = len(counts) + NUM_SPECIAL
    size = largest if vocab_size is None else vocab_size
    if not NUM_SPECIAL < size <= largest:
        raise ConfigError(
            f"vocab_size: {size} is not between {NUM_SPECIAL + 1} and {largest}, as this text has "
            f"{len(counts)} different characters. Leave the size out to keep them all."
        )
    kept = sorted(counts, key=lambda c: (-counts[c], c))[: size - NUM_SPECIAL]
    return CharacterTokenizer("".join(sorted(kept)))


def _sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    chunks = sample(_chunks(texts), SAMPLE_CHARACTERS)
    alphabet = set("\n").union(*chunks)
    if not chunks:
        raise CorpusError("the text to train on is empty. Give text with at least one character.")
    # 3,000 Chinese characters, each seen twice, would leave no room for words: rare ones are
    # spelled in bytes.
    coverage = 1.0 if 4 * len(alphabet) <= vocab_size else 0.9995
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The boundary keeps a piece from going on after a line break, and the trainer from
            # dropping the break.
            sentence_iterator=(c + _BOUNDARY if c.endswith("\n") else c for c in chunks),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=coverage,
            required_chars="\n",
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            byte_fallback=True,
            allow_whitespace_only_pieces=True,
            pretokenization_delimiter=_BOUNDARY,
            max_sentence_length=8192,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise _explain(error, vocab_size, len(alphabet)) from error
    return SentencePieceTokenizer(model.getvalue())


def _explain(error: Exception, vocab_size: int, characters: int) -> Exception:
    text = str(error)
    too_high = re.search(r"Vocabulary size too high.*<= (\d+)", text)
    too_low = re.search(r"(?:smaller than required_chars|smaller than).*?(\d+) vs (\d+)", text)
    if too_high:
        return ConfigError(
            f"vocab_size: {vocab_size} is more than this text can fill; it gives at most "
            f"{too_high[1]}. Take that, or train on more text."
        )
    if too_low or vocab_size < NUM_BYTES + NUM_SPECIAL + characters:
        return ConfigError(
            f"vocab_size: {vocab_size} is too small: 4 special ids, 256 bytes and the "
            f"{characters} characters of this text need {NUM_BYTES + NUM_SPECIAL + characters}. "
            "Take more than that."
        )
    return ConfigError(f"SentencePiece could not be trained with vocab_size={vocab_size}: {text}")


def _bpe(texts: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    chunks = sample(_chunks(texts), SAMPLE_CHARACTERS)
    if not chunks:
        raise CorpusError("the text to train on is empty. Give text with at least one character.")
    names = ["<s>", "</s>", "<pad>"]
    smallest = NUM_BYTES + len(names)
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    library.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if vocab_size >= smallest:
        library.train_from_iterator(
            chunks,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=names,
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                show_progress=False,
            ),
        )
    found = library.get_vocab_size()
    if found != vocab_size:
        most = "" if vocab_size < smallest else f" and {found}"
        word = "at least" if vocab_size < smallest else "between"
        raise ConfigError(
            f"vocab_size: {vocab_size} cannot be had from this text; it must be {word} "
            f"{smallest}{most}. Take such a size, or train on more text."
        )
    library.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return HuggingFaceTokenizer(library.to_str(), Special(bos=0, eos=1, pad=2))


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """Lines with the breaks that follow them; long ones are cut before a space."""
    for text in texts:
        yield from _CHUNK.findall(text.translate(_RESERVED))


def sample(chunks: Iterable[str], characters: int) -> list[str]:
    """At most so many characters of a stream, evenly spread: every 1st, 2nd, 4th, ... chunk."""
    kept: list[str] = []
    size, stride = 0, 1
    for index, chunk in enumerate(chunks):
        if index % stride:
            continue
        kept.append(chunk)
        size += len(chunk)
        while size > characters and len(kept) > 1:
            kept, stride = kept[::2], 2 * stride
            size = sum(map(len, kept))
    return kept
