"""What a setting needs and how long its step takes, by formula: a guess in a millisecond.

States are exact, from the shapes and their shardings.  What is kept and computed again is traced
once for each choice, on one mesh: both go with the tokens of a device.  The rest is counted from
the model's sizes as the compiled steps of this system were found to be: a block's backward pass
holds its recomputed values, its gathered weights and their gradients; the loss holds a piece of
the logits and the table.  Traffic is what the step's own gathers and sums must send, over the
links that each axis has; which share of it blocks is learned from what was compiled.

The memory is a little less than what is compiled, so that what fits is not thrown away.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.batch import Leaf, Params
from lm.layers.block import Block
from lm.layers.execution import DTYPES, KEPT, Execution, Part
from lm.layers.mlp import GatedMlp
from lm.models.decoder import Decoder, Tied
from lm.models.flops import Flops
from lm.ops.cross_entropy import LOGITS_GIB
from lm.parallel.explicit import Explicit
from lm.parallel.mesh import Mesh, axis_of, make_mesh, size
from lm.parallel.rules import Rules
from lm.parallel.shardings import axes_of, shardings
from lm.plan.hardware import Chip
from lm.plan.memory import GIB, Shards
from lm.plan.roofline import Bound, links, memory_traffic
from lm.plan.settings import Keeping, Setting
from lm.train.step import Training

Axes = tuple[str, ...]
"""The user's axes."""
Seconds = Mapping[Axes, float]
HIDDEN = {"fsdp": 0.5, "context": 0.5}
"""Share of the wire time over an axis that compute hides, where nothing was compiled; else 0."""
FLOAT32 = 4
MESH_AXES = ("slices", "data", "fsdp", "context", "tensor")


class Habit(NamedTuple):
    """How the compiled steps of like meshes differ from the guess."""

    wire: float
    """Times the guessed seconds on the wire."""
    hidden: float
    """Share of them that compute hides."""


Habits = Mapping[Axes, Habit]
"""By the axes that a mesh splits over."""


class Subject(NamedTuple):
    """What all settings have in common."""

    model: Decoder
    leaves: Params
    shapes: Params
    rules: Rules
    training: Training
    execution: Execution
    flops: Flops
    chip: Chip
    devices: Sequence[Any]
    moments: float
    """Bytes of the optimizer's state for a byte of weights."""


class Kept(NamedTuple):
    """What a way to recompute costs, traced."""

    keeping: Keeping
    bytes: float
    """Of a token, over all blocks."""
    flops: float
    """Of a token, over all blocks."""


class Laid(NamedTuple):
    """What a mesh settles, whatever is kept and in how many pieces."""

    held: Shards
    whole: float
    """Bytes of a device's weights, gathered, in the dtype of compute."""
    table: float
    """Numbers in the output table on a device, gathered."""
    block: float
    """Bytes of the largest period's weights on a device, gathered."""
    each: Seconds
    """On the wire, for every microbatch: weights gathered, gradients scattered."""
    once: Seconds
    """For every step: gradients summed over the axes that do not split them."""
    by_token: Seconds
    """For every token of a device: what tensor and context send."""
    again: Seconds
    """The part of it that is sent once more where the blocks are computed again."""


class Estimate(NamedTuple):
    """What a setting is thought to need."""

    peak: float
    """Bytes of a device."""
    bound: Bound
    kept: float
    """Bytes of a device between the two passes."""

    @property
    def peak_gib(self) -> float:
        """GiB of a device."""
        return self.peak / GIB


def lay(subject: Subject, mesh: Mesh) -> Laid:
    """The shares, sizes and traffic of a mesh.

    Raises:
        ShardingError: it does not fit the devices, or the weights do not divide.
    """
    grid = make_mesh(mesh, subject.devices)
    compute, reduce = _dtypes(subject.execution)
    explicit = Explicit(grid, subject.rules, compute, reduce)
    where = shardings(subject.leaves, subject.shapes, subject.rules, grid)
    wire = _Wire(grid, subject.chip)
    tensor = size(grid, "tensor")
    held = whole = 0.0
    for leaf, shape, sharding in zip(
        jax.tree.leaves(subject.leaves, is_leaf=lambda x: isinstance(x, Leaf)),
        jax.tree.leaves(subject.shapes),
        jax.tree.leaves(where),
        strict=True,
    ):
        numbers = float(math.prod(sharding.shard_shape(shape.shape)))
        held += numbers
        split = [p for _, made in axes_of(explicit.spec(leaf.axes)) for p in reversed(made)]
        whole += numbers * math.prod(grid.shape[p] for p in split)
        uses = 2 if leaf.kind == "table" and isinstance(subject.model.unembedding, Tied) else 1
        widths = compute.itemsize, reduce.itemsize
        wire.weight(numbers, split, leaf, explicit.manual, widths, uses)
    wire.tokens(subject, compute.itemsize)
    params = held * FLOAT32
    return Laid(
        Shards(params, params * subject.moments, params),
        whole * compute.itemsize,
        subject.model.vocab_size * subject.model.width / tensor,
        _largest_period(subject) * compute.itemsize / tensor,
        wire.each,
        wire.once,
        wire.by_token,
        wire.again,
    )


class _Wire:
    """Adds up seconds on the wire by the user's axes."""

    def __init__(self, grid: Any, chip: Chip) -> None:
        self.grid, self.chip = grid, chip
        self.rates: dict[Axes, float] = {}
        self.each: dict[Axes, float] = defaultdict(float)
        self.once: dict[Axes, float] = defaultdict(float)
        self.by_token: dict[Axes, float] = defaultdict(float)
        self.again: dict[Axes, float] = defaultdict(float)

    def seconds(self, parts: Axes, size: float) -> float:
        """Of bytes that each device sends over these axes of the grid."""
        if parts not in self.rates:
            self.rates[parts] = links(parts, self.chip, self.grid).bytes_per_second
        return size / self.rates[parts]

    def weight(
        self,
        numbers: float,
        split: Sequence[str],
        leaf: Leaf,
        manual: Axes,
        widths: tuple[int, int],
        uses: int,
    ) -> None:
        """A weight's gathers, one axis after another, and where its gradient goes.

        Args:
            numbers: of its shard.
            split: the parts over which it is gathered, in order.
            leaf: what it is.
            manual: all parts that split tokens.
            widths: bytes of a number on its way in, and of its gradient on its way out.
            uses: how often it is used in a pass, where it stands in no block.
        """
        width, reduced = widths
        gathers, scatters = (2, 1) if leaf.stacked else (uses, uses)
        shard = numbers
        for part in split:
            sent = shard * (self.grid.shape[part] - 1)
            shard *= self.grid.shape[part]
            self.each[(axis_of(part),)] += self.seconds(
                (part,), sent * (gathers * width + scatters * reduced)
            )
        for network in (False, True):
            missing = tuple(
                p for p in manual if p not in split and (axis_of(p) == "slices") == network
            )
            ways = math.prod(self.grid.shape[p] for p in missing)
            if ways > 1:
                sent = 2 * numbers * FLOAT32 * (ways - 1) / ways
                user = tuple(dict.fromkeys(axis_of(p) for p in missing))
                self.once[user] += self.seconds(missing, sent)

    def tokens(self, subject: Subject, width: int) -> None:
        """What the activations send, for every token of a device."""
        tensor, context = (
            tuple(p for p in self.grid.axis_names if axis_of(p) == axis and self.grid.shape[p] > 1)
            for axis in ("tensor", "context")
        )
        ways = size(self.grid, "tensor")
        blocks = Counter(subject.model.blocks)
        # The stream is gathered before and scattered after each of a block's two parts, in both
        # passes.
        stream = len(subject.model.blocks) * subject.model.width * width * (ways - 1)
        for part in tensor:
            self.by_token[("tensor",)] += self.seconds((part,), 8 * stream / len(tensor))
            self.again[("tensor",)] += self.seconds((part,), 3 * stream / len(tensor))
        # Keys and values are gathered whole, and their gradients scattered.
        keys = 2.0 * sum(n * b.mixer.num_kv_heads * b.mixer.head_width for b, n in blocks.items())
        shares = 1
        for part in context:
            sent = keys * width * shares * (self.grid.shape[part] - 1)
            shares *= self.grid.shape[part]
            self.by_token[("context",)] += self.seconds((part,), 2 * sent)
            self.again[("context",)] += self.seconds((part,), sent)


def estimate(
    subject: Subject, laid: Laid, setting: Setting, kept: Kept, habit: Habit | None = None
) -> Estimate:
    """What a step of this setting needs and takes.

    Args:
        subject: the run and the slice.
        laid: of the setting's mesh.
        setting: what is guessed.
        kept: what its way to recompute costs.
        habit: of like meshes, where one was compiled.
    """
    tokens = setting.sequences * subject.training.length / len(subject.devices)
    piece = tokens / setting.microbatches
    stays = kept.bytes * piece
    recomputes = kept.flops > 0
    compute = (subject.flops.causal + kept.flops) * tokens / subject.chip.peak_flops
    traffic = memory_traffic(
        laid.held, stays, laid.whole, setting.microbatches, recomputes=recomputes
    )
    hbm = traffic / subject.chip.hbm_bytes
    wire: dict[Axes, float] = defaultdict(float)
    for times, seconds in (
        (setting.microbatches, laid.each),
        (1, laid.once),
        (tokens, laid.by_token),
        (tokens if recomputes else 0, laid.again),
    ):
        for axes, each in seconds.items():
            wire[axes] += times * each * (habit.wire if habit else 1.0)
    every = sum(wire.values())
    hidden = {
        axes: s * (habit.hidden if habit else min(HIDDEN.get(axis, 0.0) for axis in axes))
        for axes, s in wire.items()
    }
    blocking = every - sum(hidden.values())
    network = sum(s for axes, s in wire.items() if "slices" in axes)
    step = max([compute, hbm, *hidden.values()]) + blocking
    bound = Bound(compute, hbm, every - network, network, step, blocking)
    return Estimate(_peak(subject, laid, setting, stays, piece), bound, stays)


def learned(guess: Bound, found: Mapping[str, float | None]) -> Habit | None:
    """How a compiled step differs from its guess without a habit.

    Args:
        guess: made with no habit.
        found: ``bound_seconds`` of the plan.
    """
    thought = (guess.ici or 0.0) + (guess.dcn or 0.0)
    real = (found["ici"] or 0.0) + (found["dcn"] or 0.0)
    if found["blocking"] is None or not thought or not real:
        return None
    return Habit(real / thought, 1 - found["blocking"] / real)


def kind(mesh: Mesh) -> Axes:
    """The axes that a mesh splits over."""
    return tuple(axis for axis in MESH_AXES if getattr(mesh, axis) > 1)


def _peak(subject: Subject, laid: Laid, setting: Setting, kept: float, piece: float) -> float:
    """Bytes of a device at the peak: while a block goes backward, or in the loss."""
    tensor = setting.mesh.tensor
    width = _dtypes(subject.execution)[0].itemsize
    held = laid.held
    # With several microbatches the sums of gradients live beside those of the present one.
    gradients = held.gradients * (1 if setting.microbatches == 1 else 2)
    named = (*KEPT[setting.keeping.remat], *setting.keeping.save, *subject.execution.offload)
    saved: frozenset[Part] = frozenset(named)
    everything = setting.keeping.remat == "nothing"
    stream = subject.model.width * piece * width
    inner = max(_inner(s.blocks, saved, everything=everything) for s in subject.model.stacks)
    whole_rows = 4 * stream * tensor if tensor > 1 else 0.0
    backward = inner * piece * width + 2 * stream + whole_rows + laid.block
    vocabulary = subject.model.vocab_size * FLOAT32 / tensor * piece * tensor
    logits = 2 * min(LOGITS_GIB * GIB, vocabulary)
    loss = logits + laid.table * (width + FLOAT32)
    return held.parameters + held.optimizer + gradients + kept + max(backward, loss)


def _inner(blocks: Sequence[Block], saved: frozenset[Part], *, everything: bool) -> float:
    """Numbers of a token that the backward pass of a period holds at once, on its device."""
    again = 0.0 if everything else sum(_recomputed(b, saved) for b in blocks)
    return again + max(_backward(b) for b in blocks)


def _recomputed(block: Block, saved: frozenset[Part]) -> float:
    m, F = block.mixer, block.mlp.hidden
    heads, keys = m.num_heads * m.head_width, m.num_kv_heads * m.head_width
    sizes: dict[Part, float] = {"qkv": heads + 2 * keys, "attention": heads, "up": F}
    if isinstance(block.mlp, GatedMlp):
        sizes["gate"] = F
    return float(F + sum(n for part, n in sizes.items() if part not in saved))


def _backward(block: Block) -> float:
    """Gradients of the inner width: of the activation, and of each inward product."""
    inward = 2 if isinstance(block.mlp, GatedMlp) else 1
    return float(block.mlp.hidden * (1 + inward))


def _largest_period(subject: Subject) -> float:
    """Weights of the largest period of blocks."""
    sizes = []
    for i, stack in enumerate(subject.model.stacks):
        leaves = jax.tree.leaves(subject.shapes[f"stack_{i}"])
        sizes.append(sum(math.prod(x.shape) for x in leaves) / stack.repeats)
    return max(sizes)


def _dtypes(execution: Execution) -> tuple[Any, Any]:
    """Of weights on their way, and of gradients on theirs."""
    reduce = execution.reduce_dtype or execution.compute_dtype
    return jnp.dtype(DTYPES[execution.compute_dtype]), jnp.dtype(DTYPES[reduce])
