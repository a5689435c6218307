"""The chips' published figures, and the slices that they come in.  Standard library only.

Sources.  Peak, HBM bandwidth, interconnect and network: Google Cloud's pages of each version
(cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x, v4), read in 2026.  They give the interconnect of
a chip as the sum over its links and both directions; a link's one direction is that over twice the
links.  v4's links (six of 50 GB/s) are from Jouppi 2023, arXiv:2304.01433, table 4.  Network of a
chip: v5p, v6e and tpu7x as published; v5e is its pod's 6.4 Tb/s over 256 chips; for v4 nothing is
published a chip, and v5p's figure is assumed.  All of it is taken to carry gradients in both
directions at once.

Memory.  What a program can use is less than what is sold: libtpu keeps a part.  The figures are
those with which libtpu 0.0.50 compares a program when it refuses one.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from lm.errors import ConfigError, did_you_mean

SOURCE = "Google Cloud TPU documentation (cloud.google.com/tpu/docs), per-version pages"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What one JAX device can do: a chip, or on tpu7x one of its two halves."""

    name: str
    hbm_gib: float
    """Memory that a program can use."""
    peak_flops: float
    """Dense bfloat16 operations a second."""
    hbm_bytes: float
    """Bytes a second from and to memory."""
    link_bytes: float
    """Bytes a second over one link of the interconnect in one direction."""
    axes: int
    """Dimensions of the grid of chips: two links each."""
    network_bytes: float
    """Bytes a second over the data-centre network in one direction."""
    wraps: int
    """A grid's dimension is a ring, not a line, where its size is a multiple of this."""
    longest: tuple[int, ...]
    """The largest slice; smaller ones have no larger sorted size."""
    devices_per_chip: int = 1


V4 = Chip(
    name="v4",
    hbm_gib=30.75,
    peak_flops=275e12,
    hbm_bytes=1228e9,
    link_bytes=50e9,
    axes=3,
    network_bytes=6.25e9,
    wraps=4,
    longest=(12, 16, 24),
)
V5E = Chip(
    name="v5e",
    hbm_gib=15.75,
    peak_flops=197e12,
    hbm_bytes=819e9,
    link_bytes=50e9,
    axes=2,
    network_bytes=3.125e9,
    wraps=16,
    longest=(16, 16),
)
V5P = Chip(
    name="v5p",
    hbm_gib=95.73,
    peak_flops=459e12,
    hbm_bytes=2765e9,
    link_bytes=100e9,
    axes=3,
    network_bytes=6.25e9,
    wraps=4,
    longest=(16, 20, 28),
)
V6E = Chip(
    name="v6e",
    hbm_gib=31.24,
    peak_flops=918e12,
    hbm_bytes=1638e9,
    link_bytes=100e9,
    axes=2,
    network_bytes=12.5e9,
    wraps=16,
    longest=(16, 16),
)
TPU7X = Chip(
    name="tpu7x",
    hbm_gib=94.74,
    # A device is half a chip: 2307 TFLOP/s, 7380 GB/s, 1200 GB/s and 100 Gb/s, over two.
    peak_flops=2307e12 / 2,
    hbm_bytes=7380e9 / 2,
    link_bytes=100e9 / 2,
    axes=3,
    network_bytes=12.5e9 / 2,
    wraps=4,
    longest=(16, 24, 24),
    devices_per_chip=2,
)
CHIPS = {chip.name: chip for chip in (V4, V5E, V5P, V6E, TPU7X)}
ALIASES = {
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "v5": "v5p",
    "trillium": "v6e",
    "v6": "v6e",
    "v7": "tpu7x",
    "v7x": "tpu7x",
    "tpu7": "tpu7x",
    "ironwood": "tpu7x",
}
BETWEEN_HALVES = 6.0
"""A tpu7x chip's halves are joined six times as fast as by one link (its page says)."""
MOST_CPU_DEVICES = 512


class Slice(NamedTuple):
    """Devices that a plan is made for, as asked."""

    chip: Chip | None
    """None: processors of this machine."""
    shape: tuple[int, ...]
    """Chips of one slice by torus axis."""
    slices: int
    """How many of them."""

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        kind = "cpu" if self.chip is None else self.chip.name
        return f"{kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices


def read_slice(words: str, slices: int = 1) -> Slice:
    """What ``v5e:16x16``, ``v5litepod:4x4`` or ``cpu:8`` stands for.

    Raises:
        ConfigError: an unknown version, or a size that no slice of it has; the nearest are named.
    """
    kind, _, size = words.lower().strip().partition(":")
    kind = kind.removeprefix("tpu-").removeprefix("tpu_")
    if kind == "cpu":
        return _processors(words, size, slices)
    name = ALIASES.get(kind, kind)
    if name not in CHIPS:
        raise ConfigError(
            f"--topology {words}: no TPU {kind!r}. {did_you_mean(kind, [*CHIPS, *ALIASES])}"
            f"Choose from: {', '.join(CHIPS)}, each with a size, as {_example(V5E)} or "
            f"{_example(V5P)}; or --devices cpu:8."
        )
    chip = CHIPS[name]
    shape = tuple(int(n) for n in size.split("x")) if re.fullmatch(r"\d+(x\d+)*", size) else ()
    if len(shape) == 1 and shape[0] > 0:
        near = _of_chips(chip, shape[0])
        raise ConfigError(
            f"--topology {words}: {shape[0]} chips can stand in several grids. "
            f"Write the grid: {', '.join(f'{chip.name}:{_spell(s)}' for s in near)}."
        )
    if len(shape) != chip.axes or not _possible(chip, shape):
        near = ", ".join(f"{chip.name}:{_spell(s)}" for s in _nearest(chip, shape))
        raise ConfigError(
            f"--topology {words}: no slice of {chip.name} is {size or 'without a size'!s}; its "
            f"chips stand in {chip.axes} dimensions of up to {_spell(chip.longest)}. "
            f"The nearest: {near}."
        )
    return Slice(chip, shape, slices)


def shapes(chip: Chip) -> list[tuple[int, ...]]:
    """Every slice of a version that can be asked for, smallest first, sizes ascending."""
    if chip.axes == 2:
        grids = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
        return list(grids)
    a, b, c = chip.longest
    cubes = [
        (x, y, z)
        for x in range(4, a + 1, 4)
        for y in range(x, b + 1, 4)
        for z in range(y, c + 1, 4)
    ]
    small = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    return small + sorted(cubes, key=math.prod)


def _possible(chip: Chip, shape: tuple[int, ...]) -> bool:
    return tuple(sorted(shape)) in {tuple(sorted(s)) for s in shapes(chip)}


def _nearest(chip: Chip, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    chips = math.prod(shape) if shape and math.prod(shape) else math.prod((4,) * chip.axes)
    return _of_chips(chip, chips)


def _of_chips(chip: Chip, chips: int) -> list[tuple[int, ...]]:
    """The four shapes nearest to a number of chips."""
    far = lambda s: abs(math.log(math.prod(s) / max(1, chips)))  # noqa: E731
    return sorted(sorted(shapes(chip), key=far)[:4], key=math.prod)


def _processors(words: str, size: str, slices: int) -> Slice:
    if not size.isdigit() or not 1 <= int(size) <= MOST_CPU_DEVICES:
        raise ConfigError(
            f"--devices {words}: give a number of processors from 1 to {MOST_CPU_DEVICES}, as "
            "cpu:8."
        )
    return Slice(None, (int(size),), slices)


def _spell(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _example(chip: Chip) -> str:
    return f"{chip.name}:{_spell((4,) * chip.axes)}"
