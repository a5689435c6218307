"""The devices as a grid with named axes, laid along the interconnect.

``slices``, ``data``, ``fsdp``, ``context`` and (later) ``expert`` split the tokens; ``tensor``
splits the products.  One axis may be -1: it takes what the others leave.

The chips of a TPU slice form a torus.  A reduce-scatter over one of its axes is compiled as one;
over several at once it becomes a full all-reduce and a slice.  So an axis that needs more than one
torus axis is made of *parts*, one for each: ``fsdp`` of 256 on 16 x 16 is ``fsdp_x`` and
``fsdp_y`` in the JAX mesh, and collectives take them one after another.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType

from lm.errors import ConfigError, ShardingError
from lm.parallel.rules import FSDP_TENSOR, Rules

AXES = ("slices", "data", "fsdp", "context", "expert", "tensor")
"""Outermost first: what talks least stands furthest apart."""
TOKEN_AXES = AXES[:-1]
"""Axes that split tokens; they are manual in the explicit region."""
ROW_AXES = ("slices", "data", "fsdp", "expert")
"""Axes that split the rows of a batch; ``context`` splits their positions."""
LETTERS = "xyzwvu"
"""Suffixes of an axis's parts, one for each torus axis."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many ways each axis splits; -1 takes the devices that the others leave."""

    data: int = 1
    """Copies of the model, each with its share of the rows."""
    fsdp: int = -1
    """Ways the weights and the rows are split (ZeRO-3, Rajbhandari 2019, arXiv:1910.02054)."""
    tensor: int = 1
    """Ways the heads and the inner width are split (Shoeybi 2019, arXiv:1909.08053), and the
    positions between blocks (Korthikanti 2022, arXiv:2205.05198)."""
    context: int = 1
    """Ways the positions of each row are split; keys and values are gathered (Dubey 2024,
    arXiv:2407.21783, section 3.3.2)."""
    expert: int = 1
    slices: int = 1
    """TPU slices joined by the data-centre network; each holds a copy of the model."""
    torus: tuple[int, ...] = ()
    """Sizes of the physical grid of the devices of a slice, where the platform does not tell:
    (8, 4) is eight groups of four neighbours.  Empty: asked of the devices."""

    def __post_init__(self) -> None:
        """Sizes are positive, or one of them -1.

        Raises:
            ConfigError: another size, or an axis that this version does not split.
        """
        sizes = _sizes(self)
        wrong = {n: s for n, s in sizes.items() if s < 1 and s != -1}
        if wrong or list(sizes.values()).count(-1) > 1:
            raise ConfigError(
                f"parallel.mesh: {_spell(sizes)}: sizes are 1 or more, and one axis may be -1 "
                "(the devices that the others leave)."
            )
        if self.expert != 1:
            raise ConfigError(
                f"parallel.mesh: expert={self.expert}: no model of this version has experts; "
                "leave it at 1."
            )
        if any(n < 1 for n in self.torus) or len(self.torus) > len(LETTERS):
            raise ConfigError(
                f"parallel.mesh: torus={self.torus}: give up to {len(LETTERS)} positive sizes."
            )


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Where a run's arrays live; may change at any resume."""

    mesh: Mesh = field(default_factory=Mesh)
    rules: Rules = field(default_factory=lambda: dict(FSDP_TENSOR))
    """Logical axis -> mesh axes."""
    collectives: Literal["whole", "rings"] = "whole"
    """How weights and their gradients travel over the token axes: each at once, or from neighbour
    to neighbour, which compilers for v5p and v6e can run beside compute; see
    ``lm.parallel.ring``.  Rings take longer to compile."""


def make_mesh(mesh: Mesh, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """The grid over these devices; an axis over several torus axes has a part for each.

    Raises:
        ShardingError: sizes that do not multiply to the number of devices.
    """
    sizes = _filled(mesh, len(devices))
    groups = _slices(sizes["slices"], devices)
    grids = [_grid(mesh.torus, group) for group in groups]
    torus = grids[0].shape
    within = {name: size for name, size in sizes.items() if name != "slices"}
    ways = factored(within, torus)
    names, shape = ["slices"], [len(groups)]
    places: list[int] = []
    split = [f for dim in range(len(torus)) for f in (ways[axis][dim] for axis in within)]
    for number, axis in enumerate(within):
        over = [dim for dim in range(len(torus)) if ways[axis][dim] > 1] or [0]
        names += [axis] if len(over) == 1 else [f"{axis}_{LETTERS[dim]}" for dim in over]
        shape += [ways[axis][dim] for dim in over]
        places += [dim * len(within) + number for dim in over]
    places += [p for p in range(len(split)) if p not in places]  # of size 1
    stacked = [grid.reshape(split).transpose(places).reshape(shape[1:]) for grid in grids]
    return jax.sharding.Mesh(
        np.stack(stacked), tuple(names), axis_types=(AxisType.Auto,) * len(names)
    )


def parts(mesh: jax.sharding.Mesh, axis: str) -> tuple[str, ...]:
    """The names that an axis has in the JAX mesh, outermost first."""
    return tuple(name for name in mesh.axis_names if axis_of(name) == axis)


def axis_of(part: str) -> str:
    """The axis that a name of the JAX mesh belongs to: ``fsdp`` for ``fsdp_y``."""
    return part.partition("_")[0]


def size(mesh: jax.sharding.Mesh, *axes: str) -> int:
    """How many ways these axes split together."""
    return math.prod(mesh.shape[name] for axis in axes for name in parts(mesh, axis))


def factored(sizes: Mapping[str, int], torus: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """For each axis, how many ways it splits each torus axis.

    The innermost axis chooses first; each takes as few torus axes as it can, and rather a whole
    one than a part of one.  Sizes whose product is that of the torus can always be laid so.
    """
    return next(_layouts(list(sizes.items())[::-1], torus))


def one_device(parallel: Parallel) -> Parallel:
    """The same rules on a mesh of one."""
    return replace(parallel, mesh=Mesh(fsdp=1))


def describe(mesh: jax.sharding.Mesh) -> str:
    """``data 1, fsdp 16 x 4, tensor 4 on 256 x TPU v5e``."""
    devices = mesh.devices.ravel()

    def split(axis: str) -> str:
        return f"{axis} {' x '.join(str(mesh.shape[name]) for name in parts(mesh, axis))}"

    always = ("data", "fsdp", "tensor")
    sizes = [split(axis) for axis in AXES if axis in always or size(mesh, axis) > 1]
    kind = getattr(devices[0], "device_kind", devices[0].platform)
    return f"{', '.join(sizes)} on {devices.size} x {kind}"


def _sizes(mesh: Mesh) -> dict[str, int]:
    return {name: getattr(mesh, name) for name in AXES}


def _filled(mesh: Mesh, n: int) -> dict[str, int]:
    """The sizes, -1 replaced by what is left of ``n`` devices."""
    sizes = _sizes(mesh)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if (free and n % fixed) or (not free and fixed != n):
        have = f"{n} device{'s' if n != 1 else ''}"
        fits = [f"tensor={t}" for t in range(1, n + 1) if n % t == 0]
        raise ShardingError(
            f"parallel.mesh: {_spell(sizes)} needs {'a multiple of ' if free else ''}{fixed} "
            f"devices, and there are {have} here. Give sizes whose product is {n}; with fsdp=-1 "
            f"and data=1 these fit: {', '.join(fits)}."
        )
    for name in free:
        sizes[name] = n // fixed
    return sizes


def _slices(wanted: int, devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice.

    Raises:
        ShardingError: another number of slices than the platform has.
    """
    numbers = sorted({getattr(device, "slice_index", None) or 0 for device in devices})
    if len(numbers) == 1:
        if wanted > 1 and devices[0].platform == "tpu":
            raise ShardingError(
                f"parallel.mesh: slices={wanted}, and all {len(devices)} devices are of one "
                "slice. Leave slices at 1; data= makes copies within a slice."
            )
        each = len(devices) // wanted
        return [list(devices[i * each : (i + 1) * each]) for i in range(wanted)]
    if wanted != len(numbers):
        raise ShardingError(
            f"parallel.mesh: slices={wanted}, and the devices are of {len(numbers)} slices, which "
            "only the data-centre network joins: weights and activations split over them would "
            f"crawl. Set slices={len(numbers)}."
        )
    return [[d for d in devices if d.slice_index == number] for number in numbers]


def _grid(torus: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """The devices of a slice by their places; axes of size 1 are left out.

    Raises:
        ShardingError: a torus that the devices do not fill.
    """
    flat = np.empty(len(devices), dtype=object)
    flat[:] = devices
    if torus:
        if math.prod(torus) != len(devices):
            raise ShardingError(
                f"parallel.mesh: torus={torus} has {math.prod(torus)} places, and a slice has "
                f"{len(devices)} devices."
            )
        return flat.reshape([n for n in torus if n > 1] or [1])
    if getattr(devices[0], "coords", None) is None or devices[0].platform != "tpu":
        return flat
    places = np.asarray([(*d.coords, getattr(d, "core_on_chip", 0)) for d in devices])
    places -= places.min(axis=0)
    shape = tuple(places.max(axis=0) + 1)
    if math.prod(shape) != len(devices):  # some chips of the slice only: no torus to follow
        return flat
    grid = np.empty(shape, dtype=object)
    for place, device in zip(places, devices, strict=True):
        grid[tuple(place)] = device
    return grid.reshape([n for n in shape if n > 1] or [1])


def _layouts(
    left: list[tuple[str, int]], free: tuple[int, ...]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Ways to lay these axes along what is free of the torus, the best first."""
    if not left:
        yield {}
        return
    (axis, ways), *others = left
    for factors in sorted(_factorings(ways, free), key=lambda f: _cost(f, free)):
        rest = tuple(n // f for n, f in zip(free, factors, strict=True))
        for layout in _layouts(others, rest):
            yield {axis: factors, **layout}


def _factorings(n: int, free: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every way to write n as a product of divisors of the free sizes."""
    if not free:
        if n == 1:
            yield ()
        return
    for divisor in range(1, math.gcd(n, free[0]) + 1):
        if n % divisor == 0 and free[0] % divisor == 0:
            for rest in _factorings(n // divisor, free[1:]):
                yield divisor, *rest


def _cost(factors: tuple[int, ...], free: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    """Fewest torus axes first; then those that leave fewest torn; the last axes first."""
    used = sum(f > 1 for f in factors)
    torn = sum(1 < f < n for f, n in zip(factors, free, strict=True))
    return used, torn, factors


def _spell(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "all 1"
