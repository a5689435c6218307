"""Tokenizers of the Hugging Face library ``tokenizers``."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lm.errors import CorpusError
from lm.tokenizers.tokenizer import Special

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"

USUAL_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[CLS]"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|eot_id|>", "[SEP]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
}
"""Where a folder does not say which tokens are special."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """A folder in the format of ``tokenizers`` or of GPT-2."""

    path: str
    """Folder with tokenizer.json, or with vocab.json and merges.txt."""

    def build(self) -> "HuggingFaceTokenizer":
        """The tokenizer.

        Raises:
            CorpusError: no such files, files of another format, or no BOS and EOS among them.
        """
        folder = Path(self.path)
        try:
            definition = _read_definition(folder)
            library = tokenizers.Tokenizer.from_str(definition)
        except CorpusError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise CorpusError(
                f"{folder}: not a tokenizer of the library 'tokenizers' ({error}). "
                "Copy the folder again or train a tokenizer."
            ) from error
        named = _named_specials(folder)
        return HuggingFaceTokenizer(
            definition, _find_special(library.get_vocab(with_added_tokens=True), named, folder)
        )


class HuggingFaceTokenizer:
    """A tokenizer of the library.

    Text that spells a special token (``<|endoftext|>``) is ordinary text.  Where the definition
    normalises nothing (GPT-2, Llama, what this project trains), ``decode(encode(text)) == text``.
    """

    def __init__(self, definition: str, special: Special):
        self.definition = definition
        self.special = special
        self.library = tokenizers.Tokenizer.from_str(definition)
        self.library.no_truncation()
        self.library.no_padding()
        names = (self.library.id_to_token(i) for i in (special.bos, special.eos, special.pad))
        self.library.add_special_tokens(list(names))
        self.library.encode_special_tokens = True
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of tokenizer.json and the special ids."""
        ids = f"\n{self.special.bos} {self.special.eos}"
        return hashlib.sha256((self.definition + ids).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS and EOS."""
        return self.library.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts, on all cores."""
        found = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint32) for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special ids give nothing."""
        return self.library.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

        These are the files that transformers reads.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self.definition, encoding="utf-8")
        names = {
            f"{name}_token": self.library.id_to_token(getattr(self.special, name))
            for name in ("bos", "eos", "pad")
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # text that spells a special token stays text
            "model_max_length": int(1e30),
            "model_input_names": ["input_ids", "attention_mask"],
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (folder / MAP).write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


def _read_definition(folder: Path) -> str:
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise CorpusError(
            f"{folder}: no tokenizer there. Give a folder that holds {FILE}, "
            "or vocab.json and merges.txt."
        )
    library = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    library.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    library.add_special_tokens(["<|endoftext|>"])
    return library.to_str()


def _named_specials(folder: Path) -> dict[str, str]:
    """The special tokens that the folder's own files name: bos, eos, pad."""
    named: dict[str, str] = {}
    for file in (folder / MAP, folder / CONFIG):
        try:
            config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for name in USUAL_NAMES:
            token = config.get(f"{name}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[name] = token
    return named


def _find_special(vocabulary: Mapping[str, int], named: Mapping[str, str], folder: Path) -> Special:
    def first(names: Iterable[str]) -> int | None:
        return next((vocabulary[name] for name in names if name in vocabulary), None)

    bos, eos, pad = (
        first([named.get(name, ""), *USUAL_NAMES[name]]) for name in ("bos", "eos", "pad")
    )
    bos = eos if bos is None else bos
    eos = bos if eos is None else eos
    if bos is None or eos is None:
        raise CorpusError(
            f"{folder}: no BOS or EOS token found. Name them in {CONFIG} "
            '("bos_token", "eos_token"); known by themselves are '
            f"{', '.join([*USUAL_NAMES['bos'], *USUAL_NAMES['eos']])}."
        )
    return Special(bos=bos, eos=eos, pad=eos if pad is None else pad)
