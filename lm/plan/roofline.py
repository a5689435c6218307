"""The least time that a step can take, from what it must compute, read and send.

A bound, not a forecast: compute at the chip's peak; memory traffic counted as if every value were
read and written as seldom as possible; each collective at the full rate of the links that its axis
really has.  What overlaps costs the slowest of the four, what blocks is added to it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.plan.collectives import Traffic
from lm.plan.hardware import BETWEEN_HALVES, Chip
from lm.plan.memory import Shards


class Work(NamedTuple):
    """What one step asks of all devices together, and of one device's memory."""

    flops: float
    """Of the model's own formula, causal."""
    recomputed_flops: float
    hbm_bytes: float


class Bound(NamedTuple):
    """Seconds of one step; None where the chip's figures or the collectives are unknown."""

    compute: float | None
    hbm: float | None
    ici: float | None
    dcn: float | None
    step: float | None
    blocking: float | None
    """Of ici and dcn, what nothing overlaps."""


UNKNOWN = Bound(None, None, None, None, None, None)


class Links(NamedTuple):
    """What carries a collective over some axes of the mesh."""

    bytes_per_second: float
    network: bool


def memory_traffic(
    held: Shards, kept_bytes: float, whole_weights: float, microbatches: int, *, recomputes: bool
) -> float:
    """Bytes that one device must at least read and write in a step.

    For each microbatch: the weights, whole over the token axes and in the dtype of compute, are
    read in the forward and the backward pass (and when it recomputes), and what is kept is written
    and read once.  Once a step: gradients are written and read, master weights and optimizer state
    read and written.
    """
    passes = 3 if recomputes else 2
    each = passes * whole_weights + 2 * kept_bytes
    return microbatches * each + 2 * (held.gradients + held.parameters + held.optimizer)


def bound(work: Work, traffic: Sequence[Traffic] | None, chip: Chip | None, mesh: Any) -> Bound:
    """The least seconds of a step on this chip and mesh."""
    if chip is None:
        return UNKNOWN
    compute = (work.flops + work.recomputed_flops) / (chip.peak_flops * mesh.devices.size)
    hbm = work.hbm_bytes / chip.hbm_bytes
    if traffic is None:
        return Bound(compute, hbm, None, None, None, None)
    ici, dcn = _times(traffic, chip, mesh)
    blocking = sum(ici[False].values()) + sum(dcn[False].values())
    # Collectives over different axes of the torus use different links: they may run at once.
    beside = max([compute, hbm, *ici[True].values(), *dcn[True].values()])
    return Bound(
        compute,
        hbm,
        sum(ici[True].values()) + sum(ici[False].values()),
        sum(dcn[True].values()) + sum(dcn[False].values()),
        beside + blocking,
        blocking,
    )


Seconds = dict[bool, dict[tuple[str, ...], float]]
"""overlapped -> axes -> seconds."""


def _times(traffic: Sequence[Traffic], chip: Chip, mesh: Any) -> tuple[Seconds, Seconds]:
    """Seconds over the interconnect and over the network."""
    ici: Seconds = {True: defaultdict(float), False: defaultdict(float)}
    dcn: Seconds = {True: defaultdict(float), False: defaultdict(float)}
    known: dict[tuple[str, ...], Links] = {}
    for t in traffic:
        if t.axes not in known:
            known[t.axes] = links(t.axes, chip, mesh)
        way = known[t.axes]
        seconds = t.wire_bytes / way.bytes_per_second
        (dcn if way.network else ici)[t.overlapped][t.axes] += seconds
    return ici, dcn


def links(axes: tuple[str, ...], chip: Chip, mesh: Any) -> Links:
    """The rate at which a device sends over axes of the JAX mesh.

    Along a torus axis that the group fills and that closes to a ring, both directions carry; along
    a line or a part of an axis, one does.  A group whose members stand ``s`` chips apart shares
    its links with ``s - 1`` others.
    """
    known = [a for a in axes if a in mesh.axis_names] or list(mesh.axis_names)
    places = [mesh.axis_names.index(a) for a in known]
    index = tuple(slice(None) if n in places else 0 for n in range(mesh.devices.ndim))
    group = mesh.devices[index].ravel()
    if len({getattr(d, "slice_index", None) or 0 for d in group}) > 1:
        return Links(chip.network_bytes, network=True)
    here = getattr(group[0], "slice_index", None) or 0
    torus = _extent(
        [d for d in mesh.devices.ravel() if (getattr(d, "slice_index", None) or 0) == here]
    )
    rate = 0.0
    coordinates = np.asarray([_coordinates(d) for d in group])
    for dim, size in enumerate(torus):
        there = np.unique(coordinates[:, dim])
        if len(there) < 2:
            continue
        apart = int(np.diff(there).min())
        if dim == 3:  # the halves of a chip
            rate += BETWEEN_HALVES * chip.link_bytes * chip.devices_per_chip
            continue
        ring = len(there) * apart == size and _closes(chip, torus, dim)
        rate += chip.link_bytes * (2 if ring else 1) / apart
    return Links(rate or chip.link_bytes, network=False)


def _closes(chip: Chip, torus: Sequence[int], dim: int) -> bool:
    """Whether a dimension of the slice is a ring: in 3-D only where all are of whole cubes."""
    if chip.axes == 2:
        return torus[dim] % chip.wraps == 0
    return all(torus[d] % chip.wraps == 0 for d in range(chip.axes))


def _extent(devices: Sequence[Any]) -> list[int]:
    places = np.asarray([_coordinates(d) for d in devices])
    return [int(n) for n in places.max(axis=0) - places.min(axis=0) + 1]


def _coordinates(device: Any) -> tuple[int, ...]:
    # 2-D chips have a third coordinate that is always 0; the halves of a chip come last.
    x, y, z = device.coords
    return x, y, z, getattr(device, "core_on_chip", 0)
