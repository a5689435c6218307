"""The one door of attention: which kernel runs and why, and the call of it."""

from typing import Any, Literal, NamedTuple, get_args

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lm.errors import ConfigError
from lm.ops.attention import cudnn, splash, streamed, xla
from lm.ops.attention.pattern import ATTENTION, Pattern, Where
from lm.ops.attention.zigzag import Shard, chunk_length

Kernel = Literal["auto", "whole", "blocked", "splash", "cudnn"]
GPU = ("gpu", "cuda")
LONG = 1024
"""Rows longer than this are streamed by ``blocked``; up to here its blocks are unrolled, and all
scores are kept for the backward pass."""


class Choice(NamedTuple):
    """A kernel that can run, and why it is the one."""

    kernel: Kernel
    why: str


class Target(NamedTuple):
    """What attention is compiled for."""

    kernel: Kernel = "auto"
    platform: str = "cpu"
    """``cpu``, ``gpu`` (or ``cuda``), ``tpu``: of the device compiled for, not of this machine."""
    interpret: bool = False
    """Run a TPU's kernel in jax's interpreter, on any platform: for tests."""


def choose(
    kernel: Kernel,
    platform: str,
    length: int,
    head_width: int,
    dtype: Any,
    pattern: Pattern,
    keys: int | None = None,
    shards: int = 1,
) -> Choice:
    """Which kernel computes attention; pure, so that start-up can tell before anything compiles.

    Args:
        kernel: the one asked for, or ``auto``.
        platform: of the devices compiled for: ``cpu``, ``gpu`` (or ``cuda``), ``tpu``.
        length: queries of a whole row, all shards together.
        head_width: H.
        dtype: of queries, keys and values.
        pattern: who sees whom.
        keys: keys of a whole row; None: as many as queries.
        shards: in how many parts the queries of a row are shared.

    Raises:
        ConfigError: the kernel asked for does not exist or cannot do it; says what would work.
        ShardingError: rows that cannot be shared so.
    """
    if kernel not in get_args(Kernel):
        raise ConfigError(
            f"attention_kernel: no kernel {kernel!r}. Choose from: {', '.join(get_args(Kernel))}."
        )
    if shards > 1:
        chunk_length(length, shards)
    keys = length if keys is None else keys
    refused = {
        "splash": _elsewhere("splash", platform, ("tpu",))
        or splash.refusal(pattern, length, keys, shards),
        "cudnn": _elsewhere("cudnn", platform, GPU)
        or cudnn.refusal(pattern, length // shards, keys, head_width, dtype),
    }
    if kernel == "auto":
        return _automatic(platform, length, pattern, shards, refused)
    if refused.get(kernel):
        instead = _automatic(platform, length, pattern, shards, refused)
        raise ConfigError(
            f"attention_kernel {kernel!r} cannot run: {refused[kernel]}. "
            f"Use 'auto' (here {instead.kernel}), 'blocked' or 'whole'."
        )
    return Choice(kernel, "asked for")


def _elsewhere(kernel: str, platform: str, homes: tuple[str, ...]) -> str | None:
    if platform in homes:
        return None
    return f"{kernel} runs on a {homes[0].upper()}, and this is compiled for {platform!r}"


def _automatic(
    platform: str, length: int, pattern: Pattern, shards: int, refused: dict[str, str | None]
) -> Choice:
    """The fastest that can run."""
    because = ""
    if platform == "tpu":
        if refused["splash"] is None and length >= splash.SHORTEST:
            return Choice("splash", f"TPU, and length {length} is a multiple of {splash.LANES}")
        because = refused["splash"] or f"length {length} is below {splash.SHORTEST}"
    if platform in GPU:
        if refused["cudnn"] is None and pattern.ordered and length <= cudnn.LONGEST:
            return Choice("cudnn", f"GPU, 16-bit, and length {length} is at most {cudnn.LONGEST}")
        because = refused["cudnn"] or (
            f"length {length} is above {cudnn.LONGEST}"
            if pattern.ordered
            else "queries and keys are not the same tokens"
        )
    because = f" ({because})" if because else ""
    if length < 2 * xla.BLOCK:
        return Choice("whole", f"length {length} is below {2 * xla.BLOCK}{because}")
    return Choice("blocked", f"length {length} is {2 * xla.BLOCK} or more{because}")


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Where,
    key: Where,
    pattern: Pattern,
    kernel: Kernel | Target = "auto",
    shard: Shard | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention of grouped query heads (Ainslie 2023, arXiv:2305.13245).

    Scores and softmax are float32; the result has the dtype of ``q_BTNH``.  A query that sees no
    key gives a mean of values, which nothing may read.

    Args:
        q_BTNH: queries; N is a multiple of the K key heads.
        k_BSKH: keys.
        v_BSKH: values.
        query: where the queries stand.
        key: where the keys stand.
        pattern: who sees whom.
        kernel: the kernel, with the platform that it is compiled for if that is no CPU.
        shard: the queries are this part of their rows, which ``zigzag`` laid out; keys and values
            are whole rows in shard order.  None: queries are whole rows.

    Raises:
        ConfigError: the kernel asked for cannot do it; says what would work.
        ShardingError: rows that cannot be shared so.
    """
    target = kernel if isinstance(kernel, Target) else Target(kernel)
    shard = None if shard is None or shard.count == 1 else shard
    shards = 1 if shard is None else shard.count
    chosen, _ = choose(
        target.kernel,
        "tpu" if target.interpret else target.platform,
        q_BTNH.shape[1] * shards,
        q_BTNH.shape[3],
        q_BTNH.dtype,
        pattern,
        k_BSKH.shape[1],
        shards,
    )
    arrays = (q_BTNH, k_BSKH, v_BSKH, query, key)
    if chosen == "splash":
        return splash.attend(*arrays, pattern, shard, interpret=target.interpret)
    if chosen == "cudnn":
        return checkpoint_name(cudnn.attend(*arrays, pattern), ATTENTION)
    if chosen == "blocked" and (shard is not None or q_BTNH.shape[1] > LONG):
        return streamed.attend(*arrays, pattern, shard)
    out_BTNH = xla.attend(*arrays, pattern, whole=chosen == "whole")
    return checkpoint_name(out_BTNH, ATTENTION)
