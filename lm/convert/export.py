"""A model as a Hugging Face folder: weights, config, tokenizer, card."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.batch import Params
from lm.convert.card import Facts, write_card
from lm.convert.families import family_of
from lm.convert.family import Family
from lm.convert.safetensors import SHARD_BYTES, Dtype, total_bytes, write_tensors
from lm.convert.weights import complete, count_parameters, export_shapes, export_tree
from lm.errors import ConversionError, ResourceError
from lm.models.decoder import Decoder
from lm.tokenizers.tokenizer import Tokenizer
from lm.tokenizers.transformers_files import write_transformers_files

ROOM = 50_000_000
"""Bytes kept free for tokenizer, configs and card."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    family: str
    """``model_type`` in config.json."""
    files: tuple[str, ...]
    parameters: int
    size: int
    """Bytes of all files."""


def export(
    decoder: Decoder,
    params: Params,
    tokenizer: Tokenizer,
    out: Path,
    *,
    dtype: Dtype = "float32",
    facts: Facts,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write the folder; it appears whole or not at all.

    Args:
        decoder: what is computed; its parts decide the architecture.
        params: its parameters.
        tokenizer: written as transformers reads it.
        out: the folder to make; it must not exist, or be empty.
        dtype: of the stored weights.
        facts: what the card says.
        shard_bytes: most bytes of one weights file.

    Raises:
        ConversionError: parts that no architecture expresses, a tokenizer that does not fit, a
            folder that is taken or cannot be made.
        ResourceError: too little room on the disk.
    """
    family = family_of(decoder)
    if tokenizer.vocab_size > decoder.vocab_size:
        raise ConversionError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, the model only "
            f"{decoder.vocab_size:,}. Export with the tokenizer that the model was trained with."
        )
    out = out.absolute()
    _check_free(out)
    full = family.complete(decoder)
    shapes = export_shapes(full, family.rules)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _check_room(partial, total_bytes(shapes, dtype))
        tensors = export_tree(full, complete(params, full), family.rules)
        write_tensors(partial, shapes, tensors, dtype=dtype, shard_bytes=shard_bytes)
        _write_json(partial / "config.json", _config(family, full, tokenizer, facts, dtype))
        _write_json(partial / "generation_config.json", _special(tokenizer))
        write_transformers_files(tokenizer, partial)
        parameters = count_parameters(decoder)
        card = write_card(
            facts, architecture=family.architecture, parameters=parameters, dtype=dtype
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise ConversionError(
            f"{out}: cannot be written ({error.strerror}). Name another folder, or free the disk."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = sorted(file for file in out.iterdir() if file.is_file())
    return Exported(
        folder=out,
        family=family.name,
        files=tuple(file.name for file in files),
        parameters=parameters,
        size=sum(file.stat().st_size for file in files),
    )


def _config(
    family: Family, decoder: Decoder, tokenizer: Tokenizer, facts: Facts, dtype: Dtype
) -> dict[str, Any]:
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **family.to_config(decoder, facts.length),
        **_special(tokenizer),
        "dtype": dtype,  # transformers 5
        "torch_dtype": dtype,  # transformers 4
        "use_cache": True,
    }


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    special = tokenizer.special
    return {
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
    }


def _check_free(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()):
            raise ConversionError(
                f"{out}: holds files already. Name a folder that does not exist, or empty it."
            )
    elif out.exists() or out.is_symlink():
        raise ConversionError(f"{out}: is a file. Name a folder that does not exist.")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + ROOM:
        raise ResourceError(
            f"{folder.parent}: the export needs {(needed + ROOM) / 1e9:.2f} GB, the disk has "
            f"{free / 1e9:.2f} GB free. Free some, or export with --dtype bfloat16."
        )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
