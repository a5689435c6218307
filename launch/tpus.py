"""The slices of Cloud TPU: what they are called, their torus, their hosts.

Names as a TPU VM takes them (``v5litepod-64``, ``v5p-128``, ``v6e-256``); ``v5e-64`` is understood.
The number of a v5p counts TensorCores, two a chip, the others chips.  Sources: Google's pages on
TPU v5e, v5p and v6e, and on TPUs in GKE.
"""

from math import prod
from typing import NamedTuple

from launch.job import LaunchError, nearest


class Kind(NamedTuple):
    """A generation: its names, chips a host, and topologies by chips."""

    prefix: str
    gke: str
    runtime: str
    cores: int
    topologies: tuple[str, ...]


class Slice(NamedTuple):
    """One slice; ``topology`` as ``8x8``."""

    type: str
    kind: Kind
    topology: str
    chips: int
    hosts: int


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x16", "8x16x16", "16x16x16", "16x16x24"),
)

KINDS = (
    Kind("v5litepod", "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", 1, _FLAT),
    Kind("v5p", "tpu-v5p-slice", "v2-alpha-tpuv5", 2, _DEEP),
    Kind("v6e", "tpu-v6e-slice", "v2-alpha-tpuv6e", 1, _FLAT),
)


def find(name: str) -> Slice:
    """The slice of this name.

    Raises:
        LaunchError: with the nearest names, where there is none.
    """
    known = {made.type: made for made in _all()}
    wanted = name.replace("v5e-", "v5litepod-")
    if wanted not in known:
        raise LaunchError(
            f"--type {name} is no TPU slice known here; the nearest are "
            f"{nearest(wanted, known, 4)}. (A v5p counts TensorCores, two a chip; v5e-64 is "
            "v5litepod-64.)"
        )
    return known[wanted]


def _all() -> list[Slice]:
    made: list[Slice] = []
    for kind in KINDS:
        for topology in kind.topologies:
            chips = prod(map(int, topology.split("x")))
            # Up to 8 chips of a flat torus are one host; larger slices are made of hosts of 4.
            hosts = 1 if kind.cores == 1 and chips <= 8 else chips // 4
            made.append(Slice(f"{kind.prefix}-{chips * kind.cores}", kind, topology, chips, hosts))
    return made
