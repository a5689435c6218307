"""Tokenizers as the files that transformers reads, with the same ids."""

import json
from pathlib import Path
from typing import Any

from lm.errors import ConversionError
from lm.tokenizers.bytes import NUM_BYTES, ByteTokenizer
from lm.tokenizers.characters import NUM_SPECIAL, CharacterTokenizer
from lm.tokenizers.huggingface import HuggingFaceTokenizer
from lm.tokenizers.model_proto import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, ModelFacts
from lm.tokenizers.sentencepiece import SentencePieceTokenizer
from lm.tokenizers.tokenizer import Special, Tokenizer

SPACE = "\u2581"
"""SentencePiece's sign for a space."""
FUSE = {"type": "Fuse"}
BYTES = {"type": "ByteFallback"}


def write_transformers_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    ``transformers.AutoTokenizer.from_pretrained(folder)`` then gives the ids of ``tokenizer``
    (with ``add_special_tokens=False``; otherwise BOS comes first, as in training) and its text.
    A SentencePiece model is written beside them as tokenizer.model.

    Raises:
        ConversionError: a tokenizer that the format cannot express; the message says why.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer.save(folder)
        return
    if isinstance(tokenizer, ByteTokenizer):
        definition = _bytes(tokenizer)
    elif isinstance(tokenizer, CharacterTokenizer):
        definition = _characters(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        definition = _sentencepiece(tokenizer)
        tokenizer.save(folder)
    else:
        raise ConversionError(
            f"{type(tokenizer).__name__}: not a kind of lm.tokenizers, so it cannot be written as "
            "tokenizer.json. Train one of those kinds or write the file yourself."
        )
    text = json.dumps(definition, ensure_ascii=False)
    HuggingFaceTokenizer(text, tokenizer.special).save(folder)


def _bytes(tokenizer: ByteTokenizer) -> dict[str, Any]:
    vocabulary = {f"<0x{i:02X}>": i for i in range(NUM_BYTES)}
    vocabulary |= _names(tokenizer.special)
    model = _bpe(vocabulary, [], byte_fallback=True)
    return _definition(model, tokenizer.special, vocabulary, decoders=[BYTES, FUSE])


def _characters(tokenizer: CharacterTokenizer) -> dict[str, Any]:
    vocabulary = _names(tokenizer.special)
    unknown = tokenizer.texts[NUM_SPECIAL - 1]
    vocabulary |= {c: i for i, c in enumerate(tokenizer.texts) if i >= NUM_SPECIAL - 1}
    model = _bpe(vocabulary, [], unknown=unknown)
    return _definition(model, tokenizer.special, vocabulary, decoders=[FUSE])


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    facts = tokenizer.facts
    _check(facts)
    texts = [piece.text for piece in facts.pieces]
    unknown = next(i for i, piece in enumerate(facts.pieces) if piece.kind == UNKNOWN)
    vocabulary = {text: i for i, text in enumerate(texts)}
    if facts.algorithm == "bpe":
        model = _bpe(
            vocabulary,
            _merges(facts),
            byte_fallback=facts.byte_fallback,
            unknown=texts[unknown],
            fuse_unknown=True,
        )
    else:
        model = {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[piece.text, piece.score] for piece in facts.pieces],
            "byte_fallback": facts.byte_fallback,
        }
    special = {i for i, p in enumerate(facts.pieces) if p.kind in (CONTROL, UNKNOWN)}
    ordinary = {i for i, p in enumerate(facts.pieces) if p.kind == USER_DEFINED}
    decoders = [_replace(SPACE, " "), BYTES, FUSE]
    normalisers = [_replace(" ", SPACE)]
    if facts.dummy_prefix:
        normalisers = [{"type": "Prepend", "prepend": SPACE}, *normalisers]
        decoders = [*decoders, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    definition = _definition(model, tokenizer.special, vocabulary, decoders=decoders)
    definition["normalizer"] = {"type": "Sequence", "normalizers": normalisers}
    definition["added_tokens"] = [
        _added(i, texts[i], special=i in special) for i in sorted(special | ordinary)
    ]
    if tokenizer.by_line:
        definition["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"Regex": r"[^\n]*\n+|[^\n]+"},
            "behavior": "Isolated",
            "invert": False,
        }
    return definition


def _check(facts: ModelFacts) -> None:
    reasons = [
        reason
        for wrong, reason in (
            (facts.algorithm not in ("bpe", "unigram"), f"its algorithm is {facts.algorithm}"),
            (facts.normalises, f"it normalises text by {facts.normalisation!r}"),
            (facts.removes_spaces, "it removes extra spaces"),
            (facts.space_after_word, "it puts spaces after words"),
        )
        if wrong
    ]
    if reasons:
        raise ConversionError(
            f"tokenizer.model: cannot be written as tokenizer.json, as {' and '.join(reasons)}. "
            "Train one with: lm tokenizer train --kind sentencepiece"
        )


def _merges(facts: ModelFacts) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, best first: what SentencePiece merges by score.

    Among equal scores SentencePiece goes from left to right, so that a run of spaces grows from
    its start (Llama's and Mistral's pieces of spaces have one score); a longer left part first
    gives the same.
    """
    ordinary = {p.text: i for i, p in enumerate(facts.pieces) if p.kind == NORMAL}
    ranked: list[tuple[float, int, int, tuple[str, str]]] = []
    for text, index in ordinary.items():
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair[0] in ordinary and pair[1] in ordinary:
                ranked.append((-facts.pieces[index].score, -cut, index, pair))
    return [pair for *_, pair in sorted(ranked)]


def _bpe(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    byte_fallback: bool = False,
    unknown: str | None = None,
    fuse_unknown: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "unk_token": unknown,
        "fuse_unk": fuse_unknown,
        "byte_fallback": byte_fallback,
        "vocab": vocabulary,
        "merges": merges,
    }


def _definition(
    model: dict[str, Any],
    special: Special,
    vocabulary: dict[str, int],
    *,
    decoders: list[dict[str, Any]],
) -> dict[str, Any]:
    names = {i: name for name, i in vocabulary.items()}
    bos = names[special.bos]
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": [
            _added(i, names[i], special=True)
            for i in sorted({special.bos, special.eos, special.pad})
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                begin,
                {"Sequence": {"id": "A", "type_id": 0}},
                begin,
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [special.bos], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _names(special: Special) -> dict[str, int]:
    return {"<s>": special.bos, "</s>": special.eos, "<pad>": special.pad}


def _added(index: int, text: str, *, special: bool) -> dict[str, Any]:
    fixed = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, **fixed, "special": special}


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}
