"""Whether sums, gathers and scatters over each axis of the mesh are right, and how fast they are.

Every device holds a weight of its own times a pattern; the host knows the sums beforehand, and
every one of them is a whole number below 2^24, so that float32 has it exactly in any order of
adding.  Rates are bus bandwidths, as NCCL's tests define them: what a device must send at least,
over the time that it took: 2 (n - 1) / n of the payload for an all-reduce over n, half of that for
a gather or a scatter.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.doctor.check import Check
from lm.doctor.exchange import Exchange
from lm.parallel.mesh import parts
from lm.plan.hardware import CHIPS, Chip
from lm.plan.roofline import links

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""How JAX calls the devices of a chip."""
PAYLOAD = {"cpu": 2**22, "tpu": 2**28, "gpu": 2**28}
"""Bytes a device: long against the time of a call, small against the memory."""
TIMES = 7
SLOW = 0.5
"""Share of the published rate below which a warning is given."""
KINDS_OF_COLLECTIVE = ("all-reduce", "all-gather", "reduce-scatter")
WEIGHTS, PATTERN = 101, 31
MOST = 2**24 // (WEIGHTS * PATTERN)
"""Devices over which a sum stays below 2^24."""


class Rate(NamedTuple):
    """Bus bandwidth in bytes a second."""

    median: float
    least: float
    most: float


def all_reduce(x: jax.Array, axis: str) -> jax.Array:
    """The sum over an axis, on each of its devices."""
    return lax.psum(x, axis)


def all_gather(x: jax.Array, axis: str) -> jax.Array:
    """What each device of an axis holds, one after another."""
    return lax.all_gather(x, axis, tiled=True)


def reduce_scatter(x: jax.Array, axis: str) -> jax.Array:
    """The sum over an axis, a part of it on each of its devices."""
    return lax.psum_scatter(x, axis, tiled=True)


def facts(
    mesh: jax.sharding.Mesh, axes: Iterable[str], exchange: Exchange, seconds: float
) -> dict[str, Any]:
    """For each axis that splits: which collectives were wrong here, and how fast each was."""
    names = [name for axis in axes for name in parts(mesh, axis) if mesh.shape[name] > 1]
    payload = PAYLOAD.get(mesh.devices.flat[0].platform, 2**22)
    found: dict[str, Any] = {}
    for name in names:
        wrong = wrong_on(mesh, name)
        timed = {} if wrong else rates(mesh, name, payload, exchange, seconds / len(names))
        found[name] = {
            "size": mesh.shape[name],
            "wrong": wrong,
            "payload_bytes": payload,
            "rates": {kind: rate._asdict() for kind, rate in timed.items()},
            "published": published(mesh, name),
        }
    return found


def judge(told: Mapping[int, Any], names: Callable[[Iterable[int]], str]) -> Iterator[Check]:
    """One line for each axis."""
    first = told[min(told)]
    if not first:
        yield Check("sums", "ok", "one device: nothing travels")
    for axis in first:
        every = {rank: t[axis] for rank, t in told.items()}
        wrong = {rank: t["wrong"] for rank, t in every.items() if t["wrong"]}
        size = first[axis]["size"]
        figures = {k: first[axis][k] for k in ("size", "payload_bytes", "rates", "published")}
        if wrong:
            kinds = sorted({line for lines in wrong.values() for line in lines})
            figures["wrong"] = {str(rank): lines for rank, lines in wrong.items()}
            said = f"over {size}: wrong {', '.join(kinds)}, seen by {names(wrong)}"
            mend = (
                "Do not train here: a chip, link or driver on this axis gives wrong numbers; take "
                "these hosts out and ask again."
            )
            yield Check(axis, "WRONG", said, figures, mend)
            continue
        yield _speed(axis, every, figures)


def _speed(axis: str, every: Mapping[int, Any], figures: dict[str, Any]) -> Check:
    """The slowest process's rates: all of them wait for one another."""
    slowest = min(every.values(), key=lambda t: t["rates"]["all-reduce"]["median"])
    reduce, gather, scatter = (
        slowest["rates"][kind] for kind in ("all-reduce", "all-gather", "reduce-scatter")
    )
    figures["rates"] = slowest["rates"]
    said = (
        f"over {slowest['size']}: exact; all-reduce {_gb(reduce['median'])} GB/s "
        f"({_gb(reduce['least'])} to {_gb(reduce['most'])}), gather {_gb(gather['median'])}, "
        f"scatter {_gb(scatter['median'])} (of {slowest['payload_bytes'] // 2**20} MiB)"
    )
    if slowest["published"] is None:
        return Check(axis, "ok", said, figures)
    share = reduce["median"] / slowest["published"]
    figures["share_of_published"] = share
    said += f"; {100 * share:.0f} % of {_gb(slowest['published'])} published"
    if share < SLOW:
        mend = f"Less than {100 * SLOW:.0f} %: look for others on this slice, or a link that fails."
        return Check(axis, "warn", said, figures, mend)
    return Check(axis, "ok", said, figures)


def published(mesh: Any, axis: str) -> float | None:
    """Bytes a second at which a device of a TPU can send over an axis."""
    chip = chip_of(mesh.devices.flat[0])
    return None if chip is None else links((axis,), chip, mesh).bytes_per_second


def chip_of(device: Any) -> Chip | None:
    """The published figures of a device; None where it is no TPU that is known."""
    kind = KINDS.get(str(getattr(device, "device_kind", "")))
    return None if kind is None else CHIPS[kind]


def wrong_on(mesh: jax.sharding.Mesh, axis: str) -> list[str]:
    """The collectives over an axis of which a device of this process got a wrong number."""
    n = mesh.shape[axis]
    length = PATTERN * 2**10 * n
    weights = (37 * np.arange(mesh.devices.size) % WEIGHTS + 1).reshape(mesh.devices.shape)
    place = mesh.axis_names.index(axis)
    if n > MOST:
        raise ValueError(f"an axis of {n}: sums over more than {MOST} are not exact in float32")
    sums = np.broadcast_to(weights.sum(axis=place, keepdims=True), weights.shape)
    # [devices, n]: for each device the weights along its line of the axis, in order.
    along = np.expand_dims(np.moveaxis(weights, place, -1), place)
    lines = np.broadcast_to(along, (*weights.shape, n)).reshape(-1, n)
    kept = NamedSharding(mesh, P(mesh.axis_names))

    def whole(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, kept, lambda index: x[index])

    arguments = [
        whole(x.astype(np.int32)) for x in (weights.reshape(-1, 1), sums.reshape(-1, 1), lines)
    ]
    found: list[str] = []
    for dtype in ("int32", "float32"):
        check = jax.shard_map(
            partial(_count_wrong, axis=axis, n=n, length=length, dtype=dtype),
            mesh=mesh,
            in_specs=P(mesh.axis_names),
            out_specs=P(mesh.axis_names),
            check_vma=False,
        )
        counts = jax.jit(check)(*arguments)
        mine = np.concatenate([np.asarray(s.data) for s in counts.addressable_shards])
        for kind, number in zip(KINDS_OF_COLLECTIVE, mine.sum(axis=0), strict=True):
            if number:
                found.append(f"{kind} of {dtype}")
    return found


def _count_wrong(
    weight: jax.Array,
    total: jax.Array,
    line: jax.Array,
    *,
    axis: str,
    n: int,
    length: int,
    dtype: str,
) -> jax.Array:
    """[1, 3]: how many numbers of each collective are not what the host says."""
    pattern = (lax.iota(jnp.int32, length) % PATTERN + 1).astype(dtype)
    mine = weight[0, 0].astype(dtype) * pattern
    wanted = total[0, 0].astype(dtype) * pattern
    each = length // n
    here = lax.axis_index(axis)
    reduced = all_reduce(mine, axis) != wanted
    gathered = all_gather(mine[:each], axis).reshape(n, each)
    strange = gathered != line[0].astype(dtype)[:, None] * pattern[:each]
    part = lax.dynamic_slice_in_dim(wanted, here * each, each)
    scattered = reduce_scatter(mine, axis) != part
    return jnp.stack([jnp.sum(x, dtype=jnp.int32) for x in (reduced, strange, scattered)])[None]


def rates(
    mesh: jax.sharding.Mesh, axis: str, payload: int, exchange: Exchange, seconds: float
) -> dict[str, Rate]:
    """The bus bandwidth of each collective over an axis, for so many bytes a device."""
    n = mesh.shape[axis]
    numbers = payload // 4 // n * n
    share = (n - 1) / n
    kinds = {
        "all-reduce": (all_reduce, numbers, 2 * share),
        "all-gather": (all_gather, numbers // n, share),
        "reduce-scatter": (reduce_scatter, numbers, share),
    }
    return {
        kind: _rate(mesh, axis, kind, one, held, ways * 4 * numbers, exchange, seconds / len(kinds))
        for kind, (one, held, ways) in kinds.items()
    }


def _rate(
    mesh: jax.sharding.Mesh,
    axis: str,
    kind: str,
    collective: Callable[[jax.Array, str], jax.Array],
    held: int,
    wire: float,
    exchange: Exchange,
    seconds: float,
) -> Rate:
    spec = P(mesh.axis_names)
    every = NamedSharding(mesh, spec)
    run = jax.jit(
        jax.shard_map(
            lambda x: collective(x[0], axis)[None],
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            check_vma=False,
        )
    )
    x = jax.jit(lambda: jnp.ones((mesh.devices.size, held), jnp.float32), out_shardings=every)()
    took = [_timed(run, x) for _ in range(2)][1]  # the first one compiles
    # All must call it as often as one another: process 0 says how often the time allows.
    often = max(1, min(TIMES, math.floor(seconds / 2 / took)))
    often = exchange.announce(f"often/{axis}/{kind}", often, 10.0)
    if often is None:
        raise TimeoutError("process 0 does not say how often to measure")
    found = sorted(wire / _timed(run, x) for _ in range(often))
    return Rate(statistics.median(found), found[0], found[-1])


def _timed(run: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run(x))
    return time.perf_counter() - began


def _gb(rate: float) -> str:
    return f"{rate / 1e9:.3g}"
