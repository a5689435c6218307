"""What a search chooses among: the mesh of a slice, what is computed again, pieces, rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from lm.layers.execution import KEPT, Execution, Part, Remat
from lm.parallel.mesh import Mesh
from lm.train.step import Training

WIDEST = 8
"""Ways that ``tensor`` splits at most: beyond it, what it sends costs more than what it saves."""
LONG = 8192
"""Tokens of a row from which ``context`` may share it, even where there are rows enough."""
SHARE = 2048
"""Tokens of a row that each device has at least where ``context`` shares it."""
PIECES = (1, 2, 4, 8, 16)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Times the rows of a step, where the batch may change."""
SAVES: tuple[tuple[Part, ...], ...] = (
    (),
    ("qkv",),
    ("attention",),
    ("out",),
    ("up",),
    ("qkv", "out"),
    ("qkv", "attention"),
    ("gate", "up"),
    ("qkv", "gate", "up"),
    ("attention", "gate", "up"),
    ("qkv", "out", "gate", "up"),
    ("qkv", "attention", "gate", "up"),
    ("qkv", "attention", "out", "gate", "up"),
)
"""Parts of a block that are worth keeping together."""


class Keeping(NamedTuple):
    """What the backward pass finds, and what it computes again."""

    remat: Remat
    save: tuple[Part, ...]

    @property
    def words(self) -> str:
        """``block, saving qkv up``."""
        return f"{self.remat}, saving {' '.join(self.save)}" if self.save else self.remat


class Setting(NamedTuple):
    """One way to run the same experiment."""

    mesh: Mesh
    keeping: Keeping
    microbatches: int
    sequences: int

    @property
    def values(self) -> dict[str, str]:
        """As they are given on the command line."""
        axes = ("data", "fsdp", "context", "tensor", "slices")
        kept = {*KEPT[self.keeping.remat], *self.keeping.save}
        # An MLP in pieces computes these again.
        whole = {"execution.mlp_pieces": "1"} if kept & {"gate", "up"} else {}
        return {
            **whole,
            **{f"parallel.mesh.{axis}": str(getattr(self.mesh, axis)) for axis in axes},
            "execution.remat": self.keeping.remat,
            "execution.save": " ".join(self.keeping.save),
            "training.microbatches": str(self.microbatches),
            "training.sequences": str(self.sequences),
        }

    def rows(self) -> float:
        """Rows of a step on each device; less than one where devices share a row."""
        m = self.mesh
        return self.sequences / (m.slices * m.data * m.fsdp * m.context)


def keepings(execution: Execution) -> list[Keeping]:
    """The run's own choice, then the others; what it keeps in the host's memory stays there."""
    away = {*execution.offload}
    found = [Keeping(execution.remat, execution.save)]
    if not away:
        found.append(Keeping("nothing", ()))
    found += [Keeping("block", save) for save in SAVES if not away & {*save}]
    return list(dict.fromkeys(found))


def meshes(own: Mesh, devices: int, training: Training) -> Iterator[Mesh]:
    """Every product of data, fsdp, context and tensor on the devices of a slice.

    ``context`` is among them only for long rows, or where there are fewer rows than devices.
    """
    scarce = training.sequences < own.slices * devices
    for tensor in (t for t in _divisors(devices) if t <= WIDEST):
        for context in _divisors(devices // tensor):
            wanted = training.length >= LONG or scarce
            if context > 1 and not (wanted and training.length // context >= SHARE):
                continue
            left = devices // tensor // context
            for data in _divisors(left):
                sizes = {"data": data, "fsdp": left // data}
                yield replace(own, **sizes, context=context, tensor=tensor)


def settings(
    found: Sequence[Mesh],
    kept: Sequence[Keeping],
    training: Training,
    *,
    any_batch: bool = False,
) -> Iterator[Setting]:
    """Every combination whose rows can be cut so."""
    times = FACTORS if any_batch else (1.0,)
    batches = [int(training.sequences * f) for f in times if (training.sequences * f) % 1 == 0]
    for mesh in found:
        ways = mesh.slices * mesh.data * mesh.fsdp
        for sequences in (n for n in batches if n and n % ways == 0):
            each = sequences // ways
            for pieces in sorted({*PIECES, training.microbatches}):
                if each % pieces == 0:
                    yield from (Setting(mesh, keeping, pieces, sequences) for keeping in kept)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
