"""The devices as a grid with named axes.

``data``, ``fsdp`` and (later) ``slices``, ``context`` and ``expert`` split the tokens; ``tensor``
splits the products.  One axis may be -1: it takes what the others leave.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from lm.errors import ConfigError, ShardingError
from lm.parallel.rules import FSDP_TENSOR, Rules

AXES = ("slices", "data", "fsdp", "context", "expert", "tensor")
TOKEN_AXES = AXES[:-1]
"""Axes that split tokens; they are manual in the explicit region."""
NOT_YET = ("slices", "context", "expert")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many ways each axis splits; -1 takes the devices that the others leave."""

    data: int = 1
    """Copies of the model, each with its share of the rows."""
    fsdp: int = -1
    """Ways the weights and the rows are split (ZeRO-3, Rajbhandari 2019, arXiv:1910.02054)."""
    tensor: int = 1
    """Ways the heads and the inner width are split (Shoeybi 2019, arXiv:1909.08053)."""
    context: int = 1
    expert: int = 1
    slices: int = 1

    def __post_init__(self) -> None:
        """Sizes are positive, or one of them -1.

        Raises:
            ConfigError: another size, or an axis that this version does not split.
        """
        sizes = {name: getattr(self, name) for name in AXES}
        wrong = {n: s for n, s in sizes.items() if s < 1 and s != -1}
        if wrong or list(sizes.values()).count(-1) > 1:
            raise ConfigError(
                f"parallel.mesh: {_spell(sizes)}: sizes are 1 or more, and one axis may be -1 "
                "(the devices that the others leave)."
            )
        later = {n: s for n, s in sizes.items() if n in NOT_YET and s != 1}
        if later:
            raise ConfigError(
                f"parallel.mesh: {_spell(later)}: this version splits data, fsdp and tensor; "
                f"leave {', '.join(later)} at 1."
            )


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Where a run's arrays live; may change at any resume."""

    mesh: Mesh = field(default_factory=Mesh)
    rules: Rules = field(default_factory=lambda: dict(FSDP_TENSOR))
    """Logical axis -> mesh axes."""


def make_mesh(mesh: Mesh, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """The grid over these devices, laid along the interconnect where the platform tells it.

    Raises:
        ShardingError: sizes that do not multiply to the number of devices.
    """
    sizes = {name: getattr(mesh, name) for name in AXES}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    n = len(devices)
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
    shape = tuple(sizes[name] for name in AXES)
    if devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(shape)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices=list(devices))
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device(parallel: Parallel) -> Parallel:
    """The same rules on a mesh of one."""
    return replace(parallel, mesh=Mesh(fsdp=1))


def describe(mesh: jax.sharding.Mesh) -> str:
    """``data 1, fsdp 16, tensor 1 on 16 x TPU v5e``."""
    devices = mesh.devices.ravel()
    sizes = [f"{name} {mesh.shape[name]}" for name in ("data", "fsdp", "tensor")]
    kind = getattr(devices[0], "device_kind", devices[0].platform)
    return f"{', '.join(sizes)} on {devices.size} x {kind}"


def _spell(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "all 1"
