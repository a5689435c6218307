"""Safetensors files: written one tensor at a time, read one tensor at a time.

The library's own writer wants a whole file in memory; the format is a length, a JSON header and
the bytes, so it is written here.  Reading, where damage must be found, is the library's.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lm.convert.weights import Tensors
from lm.errors import ConversionError

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: Mapping[str, tuple[str, Any]] = {
    "float32": ("F32", np.dtype(np.float32)),
    "bfloat16": ("BF16", np.dtype(jnp.bfloat16)),
    "float16": ("F16", np.dtype(np.float16)),
}
"""The format's name and numpy's."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000


def write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    dtype: Dtype = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> tuple[str, ...]:
    """Write tensors to ``model.safetensors``, or to numbered files with an index.

    Args:
        folder: where to; it exists.
        shapes: every tensor's shape, in the order of ``tensors``.
        tensors: names and values; only one is held at a time.
        dtype: what the values are rounded to.
        shard_bytes: most bytes of a file, unless one tensor alone is larger.

    Returns:
        The names of the files.

    Raises:
        ConversionError: a value that ``dtype`` cannot hold.
    """
    parts = _shards(shapes, DTYPES[dtype][1].itemsize, shard_bytes)
    count = len(parts)
    files = [
        SINGLE if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"
        for i in range(1, count + 1)
    ]
    coming = iter(tensors)
    for file, names in zip(files, parts, strict=True):
        with (folder / file).open("wb") as out:
            _write_file(out, {name: shapes[name] for name in names}, coming, dtype)
    if count == 1:
        return (SINGLE,)
    index = {
        "metadata": {"total_size": total_bytes(shapes, dtype)},
        "weight_map": {
            name: file for file, names in zip(files, parts, strict=True) for name in names
        },
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return (*files, INDEX)


def total_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> int:
    """Bytes of all tensors together."""
    return sum(map(math.prod, shapes.values())) * DTYPES[dtype][1].itemsize


def open_tensors(folder: Path) -> Tensors:
    """The tensors of a Hugging Face folder, each read when it is called.

    Raises:
        ConversionError: no weights there, files missing or damaged, or pickles.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such folder. Give a folder with {SINGLE}.")
    if (folder / INDEX).is_file():
        return _open_index(folder)
    if (folder / SINGLE).is_file():
        return _open_file(folder / SINGLE)
    pickles = sorted(f.name for f in folder.glob("*.bin")) + sorted(
        f.name for f in folder.glob("*.pt*")
    )
    if pickles:
        raise ConversionError(
            f"{folder}: the weights are pickles ({', '.join(pickles)}), which may run any code "
            "when they are read; they are refused. Save them as safetensors (in transformers: "
            "save_pretrained), or download the safetensors files of that model."
        )
    raise ConversionError(
        f"{folder}: neither {SINGLE} nor {INDEX} is there. Download the model again, "
        "with its safetensors files."
    )


def _shards(
    shapes: Mapping[str, tuple[int, ...]], item_bytes: int, shard_bytes: int
) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        more = math.prod(shape) * item_bytes
        if parts[-1] and size + more > shard_bytes:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += more
    return parts


def _write_file(
    out: BinaryIO,
    shapes: Mapping[str, tuple[int, ...]],
    coming: Iterable[tuple[str, np.ndarray]],
    dtype: Dtype,
) -> None:
    label, kind = DTYPES[dtype]
    # Readers of transformers refuse a file that does not say which library's layout it has.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for name, (found, array) in zip(shapes, coming, strict=False):
        if found != name or array.shape != shapes[name]:
            raise ValueError(f"{found} {array.shape} came where {name} {shapes[name]} was planned.")
        out.write(_cast(name, array, kind).reshape(-1).view(np.uint8).data)


def _cast(name: str, array: np.ndarray, kind: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = array.astype(kind, order="C", copy=False)
    if kind.itemsize >= array.dtype.itemsize:
        return cast
    lost = np.isfinite(array) & ~np.isfinite(cast)
    if lost.any():
        raise ConversionError(
            f"{name}: {int(lost.sum())} values up to {np.abs(array[lost]).max():.4g} are beyond "
            f"what {kind.name} can hold. Export with --dtype bfloat16 or float32."
        )
    return cast


def _open_index(folder: Path) -> Tensors:
    where: Mapping[str, str] = _read_json(folder / INDEX).get("weight_map", {})
    files = sorted(set(where.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        what = f"names {len(files)} files, {len(missing)} of which are missing"
        raise ConversionError(
            f"{folder / INDEX}: {what}: {', '.join(missing)}. Download the model again."
        )
    tensors = {name: read for file in files for name, read in _open_file(folder / file).items()}
    lacking = [name for name in where if name not in tensors]
    if lacking:
        raise ConversionError(
            f"{folder / INDEX}: names {len(lacking)} tensors that its files lack, "
            f"{lacking[0]} among them. Download the model again."
        )
    return tensors


def _open_file(path: Path) -> Tensors:
    names: Sequence[str] = _safely(path, lambda file: list(file.keys()))
    return {name: partial(_read, path, name) for name in names}


def _read(path: Path, name: str) -> np.ndarray:
    return _safely(path, lambda file: file.get_tensor(name))


def _safely(path: Path, look: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(path, framework="np") as file:
            return look(file)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # The last two: a dtype that numpy has not.
        raise ConversionError(
            f"{path}: cannot be read as safetensors ({error}). It may be half downloaded or "
            "quantised: download the model again, in float32, bfloat16 or float16."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path}: cannot be read ({error}). Download the model again."
        ) from error
    if not isinstance(found, dict):
        raise ConversionError(f"{path}: no JSON object. Download the model again.")
    return found
