"""What a traced step tells without a compiler: what the backward pass keeps, and its products.

The step's jaxpr names each equation by the transformation that made it: what stands below
``transpose(...)`` is the backward pass.  Whatever the rest computes and it reads, is kept between
the two.  Inside the explicit region shapes are those of one shard; ``tensor``, which the region
leaves to the compiler, is followed through the equations from the shardings that are named.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.ops.attention.pattern import VISIBLE
from lm.parallel.mesh import axis_of

VIEWS = ("reshape", "squeeze", "expand_dims", "name", "copy", "copy_p", "sharding_constraint")
"""Equations whose result is their operand, looked at otherwise."""
AUTOMATIC = "tensor"
"""The axis that the compiler splits within the region."""

Dims = Mapping[Any, int]
"""A variable -> its dimension that ``tensor`` splits; absent: none."""


def residual_bytes(jaxpr: Any, mesh: Any, shardings: Sequence[Any] = ()) -> float:
    """Bytes that one device keeps from the forward for the backward pass.

    Args:
        jaxpr: the traced step (``jax.jit(step).trace(...).jaxpr``).
        mesh: the JAX mesh of the program.
        shardings: of the step's flat arguments, as far as known.
    """
    ways = math.prod(size for name, size in mesh.shape.items() if axis_of(name) == AUTOMATIC)
    given = zip(jaxpr.jaxpr.invars, shardings, strict=False)
    dims = {v: d for v, s in given if (d := _split_dimension(getattr(s, "spec", ()))) is not None}
    return _kept(jaxpr.jaxpr, dims, ways)


def dot_flops(jaxpr: Any) -> float:
    """Operations of all products of a traced step, loops and shards counted, dead ones not.

    A Pallas kernel counts as its body's products times what it computes of its grid.
    """
    return _flops(jaxpr.jaxpr, None, 1.0)


def _kept(jaxpr: Any, dims: Dims, ways: int) -> float:
    """Of the outermost equations that hold both passes; of several such, the largest."""
    places = {**dims, **_spread(jaxpr, dims)} if ways > 1 else {}
    backward = [e for e in jaxpr.eqns if _is_backward(e)]
    if not backward:
        return max(
            (
                _kept(inner, _entering(e, inner, places), ways)
                for e in jaxpr.eqns
                for inner in _inner(e)
            ),
            default=0.0,
        )
    live = _live(jaxpr, None)
    root: dict[Any, Any] = {}
    made: dict[Any, Any] = {}
    constant: set[Any] = set()
    for e in jaxpr.eqns:
        if _is_backward(e):
            continue
        variables = [v for v in e.invars if not _is_literal(v)]
        for v in e.outvars:
            if e.primitive.name in VIEWS and variables:
                root[v] = root.get(variables[0], variables[0])
            else:
                made[v] = e
                if all(x in constant for x in variables):
                    constant.add(v)
    read = {
        root.get(v, v) for e, _ in live if _is_backward(e) for v in e.invars if not _is_literal(v)
    }
    kept = [v for v in read if v in made and v not in constant]
    return sum((_bytes(v.aval) / (ways if v in places else 1) for v in kept), 0.0)


def _flops(jaxpr: Any, wanted: Sequence[bool] | None, visible: float) -> float:
    return sum((_flops_of(e, outs, visible) for e, outs in _live(jaxpr, wanted)), 0.0)


def _flops_of(e: Any, outs: Sequence[bool], visible: float) -> float:
    name = e.primitive.name
    visible = _visible(e) or visible
    if name == "dot_general":
        (contracted, _), _ = e.params["dimension_numbers"]
        shared = math.prod(e.invars[0].aval.shape[d] for d in contracted)
        return 2.0 * math.prod(e.outvars[0].aval.shape) * shared
    inner = list(_inner(e))
    if not inner:
        return 0.0
    if name == "scan":
        return e.params["length"] * _flops(inner[0], _stable(inner[0], outs, e), visible)
    if name == "cond":
        return max(_flops(branch, outs, visible) for branch in inner)
    if name == "shard_map":
        return _shards(e) * _flops(inner[0], outs, visible)
    if name == "pallas_call":
        grid = getattr(e.params.get("grid_mapping"), "grid", ())
        runs = math.prod(n for n in grid if isinstance(n, int))
        return visible * runs * _flops(inner[0], None, visible)
    same = [j for j in inner if len(j.outvars) == len(outs)]
    if same:
        return _flops(same[0], outs, visible)
    return sum((_flops(j, None, visible) for j in inner), 0.0)


def _visible(e: Any) -> float | None:
    """The share of a kernel's grid that is computed, where the equation stands in its scope."""
    found = re.search(rf"{VISIBLE}([0-9.]+)", str(e.source_info.name_stack))
    return float(found[1]) if found else None


def _shards(e: Any) -> int:
    """How many times a region's body runs over all devices."""
    mesh = e.params["mesh"]
    manual = e.params.get("newly_manual_axes", e.params.get("manual_axes", mesh.axis_names))
    return math.prod(mesh.shape[name] for name in manual)


def _loop(e: Any, body: Any) -> tuple[int, int]:
    """How many constants a scan's body has, and how many values it carries; told by ranks."""
    carried = sum(len(v.aval.shape) == len(x.aval.shape) for v, x in _ends(e, body))
    whole = sum(len(v.aval.shape) == len(x.aval.shape) for v, x in _starts(e, body))
    return whole - carried, carried


def _starts(e: Any, body: Any) -> list[tuple[Any, Any]]:
    return list(zip(e.invars, body.invars, strict=True))


def _ends(e: Any, body: Any) -> list[tuple[Any, Any]]:
    return list(zip(e.outvars, body.outvars, strict=True))


def _stable(body: Any, outs: Sequence[bool], e: Any) -> list[bool]:
    """Which results of a loop's body matter, what it carries to itself included."""
    wanted = list(outs)
    constants, carried = _loop(e, body)
    while True:
        needed: set[Any] = set()
        for x, _ in _live(body, wanted):
            needed |= {v for v in x.invars if not _is_literal(v)}
        needed |= {v for v, w in zip(body.outvars, wanted, strict=True) if w and not _is_literal(v)}
        more = [
            w or (n < carried and body.invars[constants + n] in needed)
            for n, w in enumerate(wanted)
        ]
        if more == wanted:
            return wanted
        wanted = more


def _live(jaxpr: Any, wanted: Sequence[bool] | None) -> list[tuple[Any, list[bool]]]:
    """The equations on which the wanted results depend, each with which of its own matter."""
    flags = [True] * len(jaxpr.outvars) if wanted is None else list(wanted)
    needed = {v for v, w in zip(jaxpr.outvars, flags, strict=True) if w and not _is_literal(v)}
    found: list[tuple[Any, list[bool]]] = []
    for e in reversed(jaxpr.eqns):
        outs = [v in needed for v in e.outvars]
        if any(outs) or e.effects:
            needed |= {v for v in e.invars if not _is_literal(v)}
            found.append((e, outs))
    return found[::-1]


def _is_backward(e: Any) -> bool:
    # A loss that takes its own gradient within the forward pass is named jvp(transpose(...)).
    return re.search(r"(^|/)transpose\(", str(e.source_info.name_stack)) is not None


def _is_literal(v: Any) -> bool:
    return not hasattr(v, "count") and hasattr(v, "val")


def _inner(e: Any) -> Iterator[Any]:
    """The jaxprs that an equation runs."""
    for value in e.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            plain = getattr(one, "jaxpr", one)
            if hasattr(plain, "eqns") and hasattr(plain, "invars"):
                yield plain


def _bytes(aval: Any) -> float:
    shape, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", None)
    if dtype is None:
        return 0.0
    width = 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize
    return float(math.prod(shape) * width)


def _entering(e: Any, inner: Any, places: Dims) -> dict[Any, int]:
    """The split dimensions of what enters an equation's jaxpr."""
    given = e.invars[len(e.invars) - len(inner.invars) :]
    dropped = [0] * len(inner.invars)
    if e.primitive.name == "scan":
        first = sum(_loop(e, inner))
        dropped = [1 if n >= first else 0 for n in range(len(inner.invars))]
    if len(given) != len(inner.invars):
        return {}
    return {
        v: places[x] - d
        for v, x, d in zip(inner.invars, given, dropped, strict=True)
        if not _is_literal(x) and x in places and 0 <= places[x] - d < len(v.aval.shape)
    }


def _leaving(e: Any, inner: Any, places: Dims) -> dict[Any, int]:
    """The split dimensions of what leaves it."""
    added = [0] * len(e.outvars)
    if e.primitive.name == "scan":
        carried = _loop(e, inner)[1]
        added = [1 if n >= carried else 0 for n in range(len(e.outvars))]
    if len(inner.outvars) != len(e.outvars):
        return {}
    return {
        v: places[x] + d
        for v, x, d in zip(e.outvars, inner.outvars, added, strict=True)
        if not _is_literal(x) and x in places
    }


def _spread(jaxpr: Any, dims: Dims) -> dict[Any, int]:
    """Follow ``tensor`` through the equations, as the compiler would."""
    places: dict[Any, int] = dict(dims)
    for e in jaxpr.eqns:
        body = next(_inner(e), None)
        if body is not None and _runs(e, body):
            entering = _entering(e, body, places)
            places |= _leaving(e, body, {**entering, **_spread(body, entering)})
            continue
        rule = RULES.get(e.primitive.name, _alike)
        for v in e.outvars:
            dim = rule(e, v, places)
            if dim is not None:
                places[v] = dim
    return places


def _runs(e: Any, body: Any) -> bool:
    """Whether an equation is its body, and not a scatter that applies it to single numbers."""
    if e.primitive.name in ("cond", "scan"):
        return e.primitive.name == "scan"
    ranks = [[len(getattr(v.aval, "shape", ())) for v in j.outvars] for j in (e, body)]
    return ranks[0] == ranks[1] and len(e.invars) >= len(body.invars)


def _alike(e: Any, out: Any, places: Dims) -> int | None:
    """As an operand of the same rank whose split dimension has the same size."""
    shape = getattr(out.aval, "shape", ())
    for v in _placed(e, places):
        dim = places[v]
        if len(v.aval.shape) == len(shape) and v.aval.shape[dim] == shape[dim]:
            return dim
    return None


def _constrained(e: Any, out: Any, places: Dims) -> int | None:
    return _split_dimension(getattr(e.params["sharding"], "spec", ()))


def _split_dimension(spec: Any) -> int | None:
    for dim, entry in enumerate(spec):
        names = (entry,) if isinstance(entry, str) else entry or ()
        if any(isinstance(n, str) and axis_of(n) == AUTOMATIC for n in names):
            return dim
    return None


def _product(e: Any, out: Any, places: Dims) -> int | None:
    contracted, batch = e.params["dimension_numbers"]
    left, right = e.invars
    free = [
        [d for d in range(len(v.aval.shape)) if d not in (*contracted[s], *batch[s])]
        for s, v in enumerate((left, right))
    ]
    order = [(0, d) for d in batch[0]] + [(0, d) for d in free[0]] + [(1, d) for d in free[1]]
    for side, v in enumerate((left, right)):
        if not _is_literal(v) and v in places and (side, places[v]) in order:
            return order.index((side, places[v]))
    if not _is_literal(right) and right in places and places[right] in batch[1]:
        return list(batch[1]).index(places[right])
    return None


def _transposed(e: Any, out: Any, places: Dims) -> int | None:
    for v in _placed(e, places):
        return list(e.params["permutation"]).index(places[v])
    return None


def _reshaped(e: Any, out: Any, places: Dims) -> int | None:
    """A dimension that begins at the same place keeps its split."""
    shape = out.aval.shape
    for v in _placed(e, places):
        before = math.prod(v.aval.shape[: places[v]])
        for dim in range(len(shape)):
            if math.prod(shape[:dim]) == before and shape[dim] > 1:
                return dim
    return None


def _broadcast(e: Any, out: Any, places: Dims) -> int | None:
    for v in _placed(e, places):
        return int(e.params["broadcast_dimensions"][places[v]])
    return None


def _without(e: Any, out: Any, places: Dims) -> int | None:
    """A reduction or squeeze: the dimensions before the split one move up."""
    gone = e.params.get("axes", e.params.get("dimensions", ()))
    for v in _placed(e, places):
        if places[v] not in gone:
            return places[v] - sum(d < places[v] for d in gone)
    return None


def _placed(e: Any, places: Dims) -> Iterable[Any]:
    return [v for v in e.invars if not _is_literal(v) and v in places]


RULES: dict[str, Callable[[Any, Any, Dims], int | None]] = {
    "sharding_constraint": _constrained,
    "dot_general": _product,
    "transpose": _transposed,
    "reshape": _reshaped,
    "broadcast_in_dim": _broadcast,
    "squeeze": _without,
    "reduce_sum": _without,
    "reduce_max": _without,
    "argmax": _without,
}
