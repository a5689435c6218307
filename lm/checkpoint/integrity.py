"""Digests, by which a checkpoint is known to be what was saved.

Orbax restores a flipped bit without a word.  So every leaf of the state gets a digest as it is
saved: its dtype, its global shape and the sum, modulo 2^32 in each of two lanes, of
``mix(global element index, bits)`` over all elements.  A sum does not care in which order or where
its terms are added, so the digest is the same on every mesh and for any number of processes: each
device sums its own shards, and only these sums are added up.  As ``mix`` is a bijection of the bits
for each index, one changed element always changes the digest; other changes escape with a
probability of 2^-64.  It protects against rot and mistakes, not against an adversary.

Every file has its SHA-256 too, read back after it was written, which tells the file that was
damaged.  Where a part of a state is restored, its leaves vouch for the large files that hold them;
where the whole is, the processes share out the reading of these.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Shaped, UInt32

from lm.checkpoint.agree import exchange
from lm.checkpoint.layout import DIGESTS, METADATA_BYTES, STATE, inside, load_json, write_json
from lm.errors import CheckpointError
from lm.shards import sha256

FORMAT = 2
SMALL = 2**20
"""Files of the state beyond this size, in bytes, hold leaves and are not read by every process."""
THREADS = 4
"""How many files are read at once to compare them."""
_METADATA = {"_METADATA", "_sharding", "manifest.ocdbt", "zarr.json"}
_ARRAYS = "array_metadatas"
"""Files, and a folder of some, that Orbax and TensorStore read whole into memory."""
_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


@dataclass(frozen=True)
class Digest:
    """What is known of one leaf: dtype and global shape as the state has it, and its sum."""

    dtype: str
    shape: tuple[int, ...]
    sum: str
    """Sixteen hexadecimal digits."""


class DamagedError(CheckpointError):
    """A whole checkpoint whose content is not what was saved."""


@dataclass(frozen=True)
class Digests:
    """What vouches for one checkpoint: the content of ``digests.json``."""

    step: int
    leaves: dict[str, Digest]
    files: dict[str, str]
    """SHA-256 by path inside the STEP folder (``N bytes``, its size, for a large file of an early
    version)."""


Lanes = tuple[int, int]
"""The two sums of a leaf, or of the part of it that one process holds."""
Started = dict[str, Callable[[], Lanes]]
"""Sums under way by name: what waits for each."""


def start_sums(leaves: Mapping[str, Array]) -> Started:
    """Begin to sum this process's part of all leaves and return without waiting.

    Call it before the leaves are donated.  An accelerator is given the work at once, one program
    for each leaf, which compiles once for each kind of leaf (shape, dtype, sharding).  On a CPU the
    work would only take the next step's cores and its buffers; there the arrays are read where
    they lie, by whoever asks for the sums, for a buffer that NumPy looks at is not donated.
    """
    begin = _read_later if jax.default_backend() == "cpu" else _dispatch
    return {name: begin(leaf) for name, leaf in leaves.items()}


def read_sums(leaves: Mapping[str, Array]) -> dict[str, str]:
    """The sums of whole leaves, sixteen hexadecimal digits each; on several processes a meeting.

    A leaf that every process holds whole is summed by each for itself.
    """
    own = own_sums(start_sums(leaves))
    spread = {name: own[name] for name, leaf in leaves.items() if not leaf.is_fully_addressable}
    return {**written_sums([own]), **(written_sums(exchange("sums", spread)) if spread else {})}


def own_sums(started: Started) -> dict[str, Lanes]:
    """Wait for the sums of this process's parts; empties ``started``, which holds buffers."""
    return {name: started.pop(name)() for name in list(started)}


def written_sums(parts: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, str]:
    """The sums of all processes added up, each written as sixteen hexadecimal digits."""
    totals = {name: [sum(lane) for lane in zip(*(part[name] for part in parts), strict=True)]
              for name in parts[0]}  # fmt: skip
    return {name: "".join(f"{lane % 2**32:08x}" for lane in total)
            for name, total in totals.items()}  # fmt: skip


def element_sum(
    part: Shaped[Array, "..."], shape: tuple[int, ...], starts: Sequence[Any]
) -> UInt32[Array, "2"]:
    """The sum of ``mix(global element index, bits)`` over one part of a leaf, traced.

    Args:
        part: the elements of the part.
        shape: the shape of the whole leaf.
        starts: where the part begins along each dimension of the whole.
    """
    bits = _bits(part)
    if bits.ndim > len(shape):
        shape, starts = (*shape, bits.shape[-1]), (*starts, 0)
    inner, outer = _index(bits.shape, shape, starts)
    key = _mix(inner ^ np.uint32(0x9E3779B9), 0x85EBCA6B, 0xC2B2AE35)
    if outer is not None:
        key = _mix(key ^ outer, 0x85EBCA6B, 0xC2B2AE35)
    first = _mix(bits ^ key, 0x7FEB352D, 0x846CA68B)
    second = _mix(bits + key * np.uint32(0x27D4EB2F), 0x2C1B3C6D, 0x297A2D39)
    # Both lanes in one reduction: on a CPU three to seven times as fast as two sums.
    zero = np.uint32(0)
    lanes = jax.lax.reduce(
        (first, second),
        (zero, zero),
        lambda sums, terms: (sums[0] + terms[0], sums[1] + terms[1]),
        tuple(range(bits.ndim)),
    )
    return jnp.stack(lanes)


def files_of(step: Path) -> list[str]:
    """The files of a checkpoint but its digests, as paths inside it."""
    names = (path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file())
    return sorted(name for name in names if name != DIGESTS)


def file_marks(step: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of these files of a checkpoint, as they can be read now."""
    return {name: sha256(inside(step, name)) for name in names}


def large_files(step: Path, digests: Digests) -> list[str]:
    """The files that hold leaves, and are not to be read more often than need be."""
    return [
        name
        for name in digests.files
        if name.startswith(STATE + "/")
        and (path := inside(step, name)).is_file()
        and path.stat().st_size > SMALL
    ]


def damaged_files(step: Path, digests: Digests, names: Iterable[str]) -> list[str]:
    """Those of the named files that are missing or not what was saved."""

    def differs(name: str) -> bool:
        path, mark = inside(step, name), digests.files[name]
        if mark.endswith(" bytes") and path.is_file():
            return mark != f"{path.stat().st_size} bytes"
        return sha256(path) != mark

    wanted = list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        return [name for name, bad in zip(wanted, pool.map(differs, wanted), strict=True) if bad]


def refuse_unsafe(step: Path) -> None:
    """Refuse a checkpoint that would have files outside of it read, or too much memory taken.

    Raises:
        CheckpointError: a link leads out of the folder, or a file of metadata is far too large.
    """
    for folder, folders, files in os.walk(step):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                inside(step, path.relative_to(step).as_posix())
            read_whole = name in _METADATA or path.parent.name == _ARRAYS
            if read_whole and path.is_file() and path.stat().st_size > METADATA_BYTES:
                raise CheckpointError(
                    f"{path}: {path.stat().st_size:,} bytes, where a few thousand are expected. "
                    "Do not use this checkpoint."
                )


def write_digests(step: Path, digests: Digests) -> None:
    """Write ``digests.json``, which makes the step whole, in one step."""
    leaves = {
        name: {"dtype": leaf.dtype, "shape": list(leaf.shape), "sum": leaf.sum}
        for name, leaf in digests.leaves.items()
    }
    content = {
        "format": FORMAT,
        "step": digests.step,
        "leaves": leaves,
        "files": digests.files,
    }
    write_json(step / DIGESTS, vouched(content))


def read_digests(step: Path) -> Digests:
    """The digests of a whole checkpoint.

    Raises:
        CheckpointError: there are none, or they are of another format.
        DamagedError: they are not what was written.
    """
    content = load_json(step, DIGESTS)
    own = content.pop("own", None)
    known = content.get("format") == FORMAT
    if own != _own_digest(content) and (known or own is not None):
        raise damage(step, [f"file {DIGESTS}"])
    if not known:
        raise CheckpointError(
            f"{step / DIGESTS}: format {content.get('format')!r}, this version reads {FORMAT}. "
            "Use the version that wrote it (record.json names it)."
        )
    try:
        return _digests(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damage(step, [f"file {DIGESTS}"]) from error


def damage(step: Path, problems: Sequence[str]) -> DamagedError:
    """The error that names what is not as it was saved, leaves before files."""
    more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
    named = ", ".join(sorted(problems, key=lambda problem: problem.startswith("file"))[:8])
    return DamagedError(f"{step}: damaged; not what was saved: {named}{more}.")


def vouched(content: dict[str, Any]) -> dict[str, Any]:
    """The content of ``digests.json`` with what vouches for itself."""
    return {**content, "own": _own_digest(content)}


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digests(content: dict[str, Any]) -> Digests:
    leaves = {
        str(name): Digest(str(leaf["dtype"]), _shape(leaf["shape"]), str(leaf["sum"]))
        for name, leaf in content["leaves"].items()
    }
    files = {str(name): str(digest) for name, digest in content["files"].items()}
    return Digests(int(content["step"]), leaves, files)


def _shape(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(size) is int and size >= 0 for size in found):
        raise ValueError(f"{str(found)[:60]!r} is no shape")
    return tuple(found)


def _read_later(leaf: Array) -> Callable[[], Lanes]:
    """Holds the shards of a leaf as they are now and sums them when called."""
    shape = leaf.shape
    shards = [
        (np.asarray(shard.data), [along.start or 0 for along in shard.index])
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]

    def read() -> Lanes:
        sums = [_sum_part(part, shape, np.asarray(starts, np.uint32)) for part, starts in shards]
        return _added(sums)

    return read


@functools.partial(jax.jit, static_argnums=1)
def _sum_part(
    part: Shaped[Array, "..."], shape: tuple[int, ...], starts: UInt32[Array, "axes"]
) -> UInt32[Array, "2"]:
    return element_sum(part, shape, [starts[axis] for axis in range(len(shape))])


def _dispatch(leaf: Array) -> Callable[[], Lanes]:
    """Has every device sum its shard of a leaf, and waits for the sums when called."""
    sums = _summing(leaf.sharding)(leaf)
    return lambda: _added([shard.data for shard in sums.addressable_shards])


def _added(sums: Sequence[Array]) -> Lanes:
    first, second = np.sum(
        [np.zeros(2, np.uint64), *(np.asarray(lanes, np.uint64).reshape(2) for lanes in sums)],
        axis=0,
    )
    return int(first), int(second)


@functools.cache
def _summing(sharding: Sharding) -> Any:
    """The jitted sum of each device's shard of a leaf that is spread so; nothing is exchanged."""
    if not isinstance(sharding, NamedSharding):
        return jax.jit(lambda leaf: element_sum(leaf, leaf.shape, (0,) * leaf.ndim))
    mesh, spec = sharding.mesh, sharding.spec

    def sum_shards(leaf: Array) -> Array:
        axes = [*map(_axes, spec), *[()] * (leaf.ndim - len(spec))]
        others = tuple(name for name in mesh.axis_names if not any(name in own for own in axes))

        def sum_shard(part: Array) -> Array:
            starts = [
                jax.lax.axis_index(own).astype(jnp.uint32) * np.uint32(size) if own else 0
                for own, size in zip(axes, part.shape, strict=True)
            ]
            lanes = element_sum(part, leaf.shape, starts)
            if others:  # of the copies of a shard, the first one counts
                lanes = jnp.where(jax.lax.axis_index(others) == 0, lanes, jnp.zeros_like(lanes))
            return lanes

        return jax.shard_map(
            sum_shard,
            mesh=mesh,
            in_specs=spec,
            out_specs=PartitionSpec(mesh.axis_names),
            check_vma=False,
        )(leaf)

    return jax.jit(sum_shards)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that one entry of a partition spec names."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _bits(leaf: Array) -> Array:
    """The bits of each element as uint32; an element of 8 bytes becomes two along a last axis."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    unsigned = _UINTS[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _index(
    part: tuple[int, ...], shape: tuple[int, ...], starts: Sequence[Any]
) -> tuple[Array, Array | None]:
    """The global index of each element, row-major, as one uint32 or as two for a huge leaf.

    The low word counts within the trailing dimensions that together hold at most 2^32 elements,
    the high word over those before: a function of the global shape alone.
    """
    words: list[Array | None] = [None, None]
    stride, word = 1, 0
    for axis in reversed(range(len(shape))):
        if word == 0 and stride * shape[axis] > 2**32:
            stride, word = 1, 1
        place = jax.lax.broadcasted_iota(jnp.uint32, part, axis) + starts[axis]
        along = place * np.uint32(stride % 2**32)
        so_far = words[word]
        words[word] = along if so_far is None else so_far + along
        stride *= shape[axis]
    inner, outer = words
    return jnp.zeros(part, jnp.uint32) if inner is None else inner, outer


def _mix(x: Array, first: int, second: int) -> Array:
    """A bijection of 32 bits that spreads each over all (as MurmurHash3 finishes)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(first)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(second)
    return x ^ (x >> np.uint32(16))
