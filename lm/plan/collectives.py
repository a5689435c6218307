"""What travels between devices in one step, read from the scheduled program.

A collective is named by what the compiler emits, not by what it is called: an ``all-reduce`` whose
emitter is ``SingleInputAllReduceScatterFusion`` sends what a reduce-scatter sends, and one that is
fused with a slice of its result but emitted by a ``RotatedPincer`` is an all-reduce.

Wire bytes of one device: gathering, scattering or exchanging over n devices moves (n - 1)/n of the
whole, an all-reduce twice that, a permutation what it sends.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.plan.hlo import Instruction, Module, bytes_of, reachable, trip_count

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SCATTERING_EMITTERS = ("AllReduceScatterFusion",)
MEGASCALE = r'_xla_megascale_transfer_type="(\w+)"'
MEETING = r'_xla_host_transfer_rendezvous="([^"]*)"'
KERNELS = ("dot", "convolution", "cholesky", "triangular-solve", "while", "conditional", "call")
NO_COMPUTE = (
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "AllocateBuffer",
    "ConcatBitcast",
    "AssumeGatherIndicesInBound",
    "Sharding",
)


class Traffic(NamedTuple):
    """One collective of the program."""

    kind: str
    axes: tuple[str, ...]
    """Axes of the JAX mesh over which it runs; ``("?",)`` where its groups are none of them."""
    overlapped: bool
    """Whether real compute stands between its start and its end in the schedule."""
    runs: int
    """Times in a step."""
    wire_bytes: float
    """Bytes that one device sends in a step, all runs together."""
    whole_bytes: float
    """Full size of one run: what is gathered, or what is reduced."""
    where: str
    """The operation of the model that it comes from, as the compiler's metadata has it."""


class Row(NamedTuple):
    """Collectives of one kind over the same axes."""

    kind: str
    axes: tuple[str, ...]
    """The user's axes."""
    overlapped: bool
    count_per_step: int
    wire_gib_per_step: float
    largest_gib: float
    """Full size of the largest single one."""


class Found(NamedTuple):
    """All collectives, and whether some may be miscounted."""

    traffic: tuple[Traffic, ...]
    unknown_loops: int
    """Loops with collectives whose trip count the text does not tell; counted once."""
    unread: int
    """Collectives of the text in places that were not understood; not counted."""


def collectives(module: Module, mesh: Any) -> Found:
    """Every collective of a program that was compiled for this mesh."""
    reader = _Reader(module, Grid(mesh))
    traffic = tuple(reader.walk(module.entry, 1))
    return Found(traffic, reader.unknown_loops, reader.unread())


def rows(traffic: Sequence[Traffic], user_axis: Any) -> list[Row]:
    """One row for each (kind, axes, overlapped), the most wire first.

    Args:
        traffic: the collectives.
        user_axis: the user's name of an axis of the JAX mesh.
    """
    together: dict[tuple[str, tuple[str, ...], bool], list[Traffic]] = defaultdict(list)
    for t in traffic:
        axes = tuple(dict.fromkeys(user_axis(axis) for axis in t.axes))
        together[t.kind, axes, t.overlapped].append(t)
    found = [
        Row(
            kind,
            axes,
            overlapped,
            sum(t.runs for t in many),
            sum(t.wire_bytes for t in many) / 2**30,
            max(t.whole_bytes for t in many) / 2**30,
        )
        for (kind, axes, overlapped), many in together.items()
    ]
    return sorted(found, key=lambda row: -row.wire_gib_per_step)


class Grid:
    """The mesh as the compiler sees it: positions in the flattened grid, and axes that vary."""

    def __init__(self, mesh: Any) -> None:
        """Of a JAX mesh."""
        self.names = tuple(mesh.axis_names)
        self.sizes = tuple(mesh.shape[name] for name in self.names)
        slices = {getattr(d, "slice_index", None) or 0 for d in mesh.devices.ravel()}
        self.slices = len(slices)

    def ways(self, axes: Sequence[str]) -> int:
        """Devices of a group over these axes."""
        sizes = dict(zip(self.names, self.sizes, strict=True))
        return math.prod(sizes[a] for a in axes if a in sizes)

    def over(self, groups: np.ndarray) -> tuple[str, ...]:
        """The axes whose devices these groups hold, or the fewest that hold each group."""
        sizes = self._sizes(groups)
        real = [n for n, s in zip(self.names, sizes, strict=True) if s > 1]
        wanted = {frozenset(g) for g in groups.tolist()}
        choices = [c for k in range(1, len(real) + 1) for c in itertools.combinations(real, k)]
        by_size = sorted(choices, key=lambda c: math.prod(sizes[self.names.index(a)] for a in c))
        for axes in by_size:
            cosets = self._cosets(axes, sizes)
            if cosets.shape[1] == groups.shape[1] and {frozenset(c) for c in cosets.tolist()} == (
                wanted
            ):
                return axes
        for axes in by_size:
            home = self._home(axes, sizes)
            if all(len({home[i] for i in g}) == 1 for g in wanted):
                return axes
        return ("?",)

    def of_pairs(self, pairs: np.ndarray) -> tuple[str, ...]:
        """The axes along which source and target of a permutation differ."""
        sizes = self._sizes(pairs)
        a, b = (np.unravel_index(pairs[:, k], sizes) for k in (0, 1))
        moved = [n for n, x, y in zip(self.names, a, b, strict=True) if (x != y).any()]
        return tuple(moved) or ("?",)

    def _sizes(self, groups: np.ndarray) -> tuple[int, ...]:
        """Sizes of the axes; within one slice where the groups number its devices alone."""
        if self.slices > 1 and groups.size and groups.max() < math.prod(self.sizes) // self.slices:
            return tuple(
                1 if name == "slices" else size
                for name, size in zip(self.names, self.sizes, strict=True)
            )
        return self.sizes

    def _cosets(self, axes: tuple[str, ...], sizes: tuple[int, ...]) -> np.ndarray:
        """Every group over these axes: [groups, devices]."""
        places = np.arange(math.prod(sizes)).reshape(sizes)
        last = [self.names.index(a) for a in axes]
        first = [i for i in range(len(sizes)) if i not in last]
        ways = math.prod(sizes[i] for i in last)
        return places.transpose(first + last).reshape(-1, ways)

    def _home(self, axes: tuple[str, ...], sizes: tuple[int, ...]) -> dict[int, int]:
        cosets = self._cosets(axes, sizes).tolist()
        return {device: n for n, coset in enumerate(cosets) for device in coset}


class _Reader:
    """Walks the program once; each computation as often as it runs."""

    def __init__(self, module: Module, grid: Grid) -> None:
        self.module, self.grid = module, grid
        self.unknown_loops = 0
        self.reached: set[tuple[str, str]] = set()

    def unread(self) -> int:
        """Collectives of the text that the walk never came to."""
        return sum(
            i.opcode.removesuffix("-start") in KINDS and (name, i.name) not in self.reached
            for name, schedule in self.module.computations.items()
            for i in schedule
        )

    def walk(self, computation: str, times: int) -> Iterator[Traffic]:
        """Every collective that a computation runs, so many times."""
        schedule = self.module.of(computation)
        self.reached |= {(computation, i.name) for i in schedule}
        continuing: set[str] = set()
        for place, i in enumerate(schedule):
            if continuing & set(i.operands):
                # Part of a collective that is under way: reads its state, or hands it on.
                if i.opcode in ("get-tuple-element", "bitcast", "tuple"):
                    continuing.add(i.name)
                    continue
                if i.opcode == "fusion" and self._inner(i):
                    if not self._calls(i, "AsyncCollectiveDone"):
                        continuing.add(i.name)
                    continue
            if i.opcode == "fusion" and self._calls(i, "AsyncCollectiveStart"):
                continuing.add(i.name)
                yield from self._fused_start(schedule, place, times)
            else:
                yield from self._one(schedule, place, times)

    def _one(self, schedule: tuple[Instruction, ...], place: int, times: int) -> Iterator[Traffic]:
        i = schedule[place]
        if i.opcode == "while":
            yield from self._loop(i, times)
        elif i.opcode in ("call", "conditional"):
            for name in i.called():
                yield from self.walk(name, times)
        elif i.opcode == "fusion":
            for inner, there in self._inner(i):
                yield from self._traffic(inner, there, times, overlapped=False, outer=i)
        elif i.opcode == "send":
            yield from self._megascale(schedule, place, times)
        elif (kind := i.opcode.removesuffix("-start")) in KINDS:
            overlapped = kind != i.opcode and self._computes(schedule, place, {i.name}, i.bytes / 2)
            yield from self._traffic(i, schedule, times, overlapped=overlapped, outer=i)
        elif i.opcode.endswith("-start") and (inside := self._inner(i)):
            # A wrapper (async-start), or a call that another core runs (call-start).
            whole = max(x.bytes for x, _ in inside)
            overlapped = self._computes(schedule, place, {i.name}, whole)
            for inner, there in inside:
                yield from self._traffic(inner, there, times, overlapped=overlapped, outer=i)

    def _loop(self, loop: Instruction, times: int) -> Iterator[Traffic]:
        trips = trip_count(self.module, loop)
        inside = [t for name in loop.called() for t in self.walk(name, times * (trips or 1))]
        if trips is None and inside:
            self.unknown_loops += 1
        if trips != 0:
            yield from inside

    def _inner(self, i: Instruction) -> list[tuple[Instruction, tuple[Instruction, ...]]]:
        """The collectives within a fusion or wrapper, each with the computation it stands in."""
        found = []
        for name in i.called():
            there = self.module.of(name)
            for x in there:
                if x.opcode.removesuffix("-start") in KINDS:
                    found.append((x, there))
                    self.reached.add((name, x.name))
                elif x.opcode in ("fusion", "call"):
                    found += self._inner(x)
        return found

    def _calls(self, i: Instruction, target: str) -> bool:
        wanted = f'custom_call_target="{target}"'
        return any(wanted in x.attributes for name in i.called() for x in self.module.of(name))

    def _fused_start(
        self, schedule: tuple[Instruction, ...], place: int, times: int
    ) -> Iterator[Traffic]:
        """A collective that TPU fusions carry along: started, continued beside compute, ended."""
        start = schedule[place]
        own, computes, whole = {start.name}, False, start.bytes / 2
        for i in schedule[place + 1 :]:
            touched = bool(own & set(i.operands))
            if touched and i.opcode == "fusion" and self._calls(i, "AsyncCollectiveDone"):
                computes = computes or self._is_compute(i, whole)
                break
            if touched and (
                i.opcode in ("get-tuple-element", "bitcast", "tuple") or self._inner(i)
            ):
                own.add(i.name)
            computes = computes or self._is_compute(i, whole)
        for inner, there in self._inner(start):
            yield from self._traffic(inner, there, times, overlapped=computes, outer=start)

    def _megascale(
        self, schedule: tuple[Instruction, ...], place: int, times: int
    ) -> Iterator[Traffic]:
        """A collective between slices, which the hosts carry out: a send and a receive."""
        send = schedule[place]
        kind, meeting = send.attribute(MEGASCALE), send.attribute(MEETING)
        if kind is None:
            return
        shapes = {i.name: i.shape for i in schedule}
        held = bytes_of(shapes.get(send.operands[0], "")) if send.operands else 0.0
        receives = {
            i.name for i in schedule if i.opcode == "recv" and i.attribute(MEETING) == meeting
        }
        overlapped = self._computes(schedule, place, receives, held)
        name = kind.lower().replace("_", "-")
        n = self.grid.slices
        whole = held * n if name == "all-gather" else held
        yield Traffic(
            name,
            ("slices",),
            overlapped,
            times,
            times * _wire(name, whole, n),
            whole,
            send.attribute(r'op_name="([^"]*)"') or meeting or "",
        )

    def _traffic(
        self,
        i: Instruction,
        there: tuple[Instruction, ...],
        times: int,
        *,
        overlapped: bool,
        outer: Instruction,
    ) -> Iterator[Traffic]:
        """One collective instruction, with the computation in which its operands stand."""
        kind = i.opcode.removesuffix("-start")
        if kind == "collective-permute":
            pairs = _pairs(i.attributes)
            axes, n = self.grid.of_pairs(pairs), 2
            if not len(pairs) or (pairs[:, 0] == pairs[:, 1]).all():
                return
        else:
            axes, n = self._group(i.attributes)
        if n < 2:
            return
        emitter = _emitter(outer) or _emitter(i)
        if kind == "all-reduce" and any(name in emitter for name in SCATTERING_EMITTERS):
            kind = "reduce-scatter"
        shapes = {x.name: x.shape for x in there}
        given = sum(bytes_of(shapes.get(name, "")) for name in i.operands)
        whole = given * n if kind == "all-gather" else given
        where = i.attribute(r'op_name="([^"]*)"') or outer.attribute(r'op_name="([^"]*)"') or ""
        wire = times * _wire(kind, whole, n)
        yield Traffic(kind, axes, overlapped, times, wire, whole, where)

    def _group(self, attributes: str) -> tuple[tuple[str, ...], int]:
        """Axes and devices of a collective's groups."""
        named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
        if named is not None:
            sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
            axes = tuple(re.findall(r"'([^']+)'", named[2]))
            if set(axes) <= set(self.grid.names) and ":(" not in named[2]:
                real = tuple(a for a in axes if int(sizes[a]) > 1)
                return real, math.prod(int(sizes[a]) for a in real)
        groups = replica_groups(attributes, math.prod(self.grid.sizes) // self.grid.slices)
        if groups is None:
            return ("?",), math.prod(self.grid.sizes)
        return self.grid.over(groups), groups.shape[1]

    def _computes(
        self, schedule: tuple[Instruction, ...], place: int, names: set[str], whole: float
    ) -> bool:
        """Whether real compute stands between a start and its end (or the loop body's end).

        Args:
            schedule: the computation.
            place: where it starts.
            names: of what the end waits for.
            whole: bytes that travel.
        """
        names, found = set(names), False
        for later in schedule[place + 1 :]:
            if names & set(later.operands):
                if later.opcode.endswith("-done"):
                    return found
                if later.opcode.endswith("-update"):
                    # Only now it is given its operands; what came before was preparation.
                    names.add(later.name)
                    found = False
                    continue
            found = found or self._is_compute(later, whole)
        return found

    def _is_compute(self, i: Instruction, whole: float) -> bool:
        """Products, kernels and loops; or a fusion whose result is as large as what travels."""
        if i.opcode in KERNELS:
            return i.opcode not in ("call", "while", "conditional") or any(
                self._is_compute(x, whole) for name in i.called() for x in self.module.of(name)
            )
        if i.opcode == "custom-call":
            target = i.attribute(r'custom_call_target="([^"]*)"') or ""
            return target not in NO_COMPUTE
        if i.opcode != "fusion":
            return False
        kinds = {x.opcode for name in i.called() for x in reachable(self.module, name)}
        if kinds & {"dot", "convolution"}:
            return True
        return not self._inner(i) and i.bytes >= max(whole, 1.0)


def replica_groups(attributes: str, devices: int) -> np.ndarray | None:
    """The groups of devices of a collective: [groups, devices]; None where they are not told.

    Explicit lists ``{{0,1},{2,3}}``, the iota form ``[4,2]<=[2,4]T(1,0)``, and the form that
    names axes of a mesh, ``mesh['a'=2,'b'=4] {'b'}``; ``{}`` is all devices together.
    """
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota is not None:
        shape = [int(n) for n in iota[3].split(",")]
        places = np.arange(math.prod(shape)).reshape(shape)
        if iota[4]:
            places = places.transpose([int(n) for n in iota[4].split(",")])
        return places.reshape(int(iota[1]), int(iota[2]))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if named is not None:
        return _named_groups(named[1], named[2])
    listed = re.search(r"replica_groups=\{((?:\{[\d,\s]*\},?\s*)*)\}", attributes)
    if listed is None:
        return None
    groups = [
        [int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,\s]+)\}", listed[1])
    ]
    if not groups:
        return np.arange(devices)[None]
    return np.asarray(groups) if len({len(g) for g in groups}) == 1 else None


def _named_groups(mesh: str, axes: str) -> np.ndarray | None:
    """Groups over axes of a mesh; an axis may be a part of one, as ``'x':(2)4``."""
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    split: dict[str, tuple[int, int]] = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        if name not in sizes:
            return None
        split[name] = (int(before), int(size)) if size else (1, sizes[name])
    shape: list[int] = []
    last: list[int] = []
    for name, size in sizes.items():
        before, within = split.get(name, (size, 1))
        if size % (before * within):
            return None
        shape += [before, within, size // (before * within)]
        if name in split:
            last.append(len(shape) - 2)
    first = [i for i in range(len(shape)) if i not in last]
    places = np.arange(math.prod(shape)).reshape(shape)
    ways = math.prod(shape[i] for i in last)
    return places.transpose(first + last).reshape(-1, ways)


def _pairs(attributes: str) -> np.ndarray:
    """Sources and targets of a permutation: [pairs, 2]."""
    listed = re.search(r"source_target_pairs=\{((?:\{\d+,\s*\d+\},?\s*)*)\}", attributes)
    found = re.findall(r"\{(\d+),\s*(\d+)\}", listed[1]) if listed else []
    return np.asarray([(int(a), int(b)) for a, b in found], dtype=np.int64).reshape(-1, 2)


def _emitter(i: Instruction) -> str:
    return i.attribute(r'"collective_algorithm_config":\{[^}]*?"emitter":"([^"]*)"') or ""


def _wire(kind: str, whole: float, n: int) -> float:
    """Bytes that one of n devices sends for a collective of this full size."""
    if kind == "collective-permute":
        return whole
    share = whole * (n - 1) / n
    return 2 * share if kind == "all-reduce" else share


def by_axes(traffic: Sequence[Traffic]) -> Mapping[tuple[tuple[str, ...], bool], float]:
    """Wire bytes of a step by (axes of the JAX mesh, overlapped)."""
    sums: dict[tuple[tuple[str, ...], bool], float] = defaultdict(float)
    for t in traffic:
        sums[t.axes, t.overlapped] += t.wire_bytes
    return sums
