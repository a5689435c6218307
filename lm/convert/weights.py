"""Parameter trees to the tensors of another format and back, both ways from one table.

A table names our parameters by absolute layer number, ``blocks.{i}.mixer.query.w``, wherever a
decoder's stacks keep that layer: layer ``first + repeat * len(blocks) + block`` of a stack is row
``repeat`` of ``stack_S.block_B``.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Params
from lm.convert.layout import parse
from lm.errors import ConversionError
from lm.layers.execution import Execution
from lm.models.decoder import Decoder

Tensors = Mapping[str, Callable[[], np.ndarray]]
"""Tensors by their name in the other format, each read when it is called."""


@dataclass(frozen=True)
class Rule:
    """Where some of our parameters stand in the other format."""

    ours: str | tuple[str, ...]
    """One name, or several that the other format joins; ``{i}`` is the layer.  Those that a model
    has not are passed over."""
    theirs: str
    layout: str | None = None
    """Theirs -> ours, as in ``"(n h) d -> d n h"``; None: the same."""
    axis: int = -1
    """The dimension of theirs along which several of ours are joined."""


class Address(NamedTuple):
    """Where a parameter is found in the tree."""

    path: tuple[str, ...]
    repeat: int | None
    """Its row in a stacked leaf; None: the whole leaf."""
    shape: tuple[int, ...]
    """Without the ``layers`` dimension."""


class Entry(NamedTuple):
    """One tensor of the other format and the parameters it is made of."""

    theirs: str
    shape: tuple[int, ...]
    parts: tuple[Address, ...]
    rule: Rule


class Plan(NamedTuple):
    """A table as it applies to one decoder."""

    entries: tuple[Entry, ...]
    addresses: Mapping[str, Address]
    unfilled: tuple[str, ...]
    """Names of ours that no rule knows."""


@functools.lru_cache(maxsize=8)
def shapes_of(decoder: Decoder) -> Params:
    """The decoder's parameters as shapes; makes no array.  Kept, for tracing takes a while."""
    return jax.eval_shape(decoder.build(Execution()).init, jax.random.key(0))


def count_parameters(decoder: Decoder) -> int:
    """How many numbers the decoder has; a tied table counts once."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes_of(decoder)))


def plan(decoder: Decoder, rules: Sequence[Rule]) -> Plan:
    """Resolve a table: which tensor holds which parameters of this decoder."""
    addresses = dict(_addresses(decoder))
    layers = range(len(decoder.blocks))
    entries: list[Entry] = []
    known: set[str] = set()
    for layered, group in itertools.groupby(rules, lambda rule: "{i}" in rule.theirs):
        for layer, rule in itertools.product(layers if layered else [0], list(group)):
            names = [name.replace("{i}", str(layer)) for name in _names(rule)]
            if all(name in addresses for name in names):
                parts = tuple(addresses[name] for name in names)
                theirs = rule.theirs.replace("{i}", str(layer))
                entries.append(Entry(theirs, _their_shape(rule, parts), parts, rule))
                known.update(names)
    unfilled = tuple(name for name in addresses if name not in known)
    return Plan(tuple(entries), addresses, unfilled)


def export_shapes(decoder: Decoder, rules: Sequence[Rule]) -> dict[str, tuple[int, ...]]:
    """The tensors that ``export_tree`` gives, in its order.

    Raises:
        ConversionError: parameters that the table does not know.
    """
    return {entry.theirs: entry.shape for entry in _whole(decoder, rules)}


def export_tree(
    decoder: Decoder, params: Params, rules: Sequence[Rule]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of the other format, one at a time: only one is ever copied.

    Raises:
        ConversionError: parameters that the table does not know.
    """
    for entry in _whole(decoder, rules):
        pieces = [_read(params, part) for part in entry.parts]
        if entry.rule.layout is not None:
            pieces = [parse(entry.rule.layout).to_theirs(piece) for piece in pieces]
        yield (
            entry.theirs,
            pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=entry.rule.axis),
        )


def import_tree(
    decoder: Decoder, tensors: Tensors, rules: Sequence[Rule], *, ignored: Sequence[str] = ()
) -> Params:
    """The decoder's parameters, float32, from the tensors of the other format.

    Args:
        decoder: the model that the tensors belong to.
        tensors: what the other format holds; each is read once.
        rules: the table.
        ignored: patterns of names that hold no weights (masks, rotary frequencies).

    Raises:
        ConversionError: everything that does not fit, collected: tensors without a rule,
            parameters that nothing fills, shapes that differ, values that are no weights.
    """
    resolved = plan(decoder, rules)
    tree: dict[str, Any] = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes_of(decoder))
    problems = _Problems(resolved, tensors, ignored)
    for entry in resolved.entries:
        if entry.theirs in tensors:
            array = tensors[entry.theirs]()
            if problems.fits(entry, array):
                _write(tree, entry, array)
    problems.report()
    return tree


def complete(params: Params, decoder: Decoder) -> Params:
    """The same parameters with biases of zero where ``decoder`` has some that they lack."""

    def fill(shapes: Params, have: Params) -> dict[str, Any]:
        return {
            name: fill(shape, have.get(name, {}))
            if isinstance(shape, Mapping)
            else have.get(name, np.zeros(shape.shape, np.float32))
            for name, shape in shapes.items()
        }

    return fill(shapes_of(decoder), params)


def compress(names: Iterable[str]) -> list[str]:
    """Names that differ in their layer number alone, as one: ``blocks.{0..15}.mixer.out.b``."""
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        general = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        layers.setdefault(general, []).extend([] if number is None else [int(number.group())])
    return [name.replace("{}", _spans(sorted(numbers))) for name, numbers in layers.items()]


class _Problems:
    """What does not fit, by kind, to be reported at once."""

    def __init__(self, resolved: Plan, tensors: Tensors, ignored: Sequence[str]) -> None:
        known = {entry.theirs for entry in resolved.entries}
        skip = [re.compile(pattern) for pattern in ignored]
        self.no_rule = [
            name
            for name in tensors
            if name not in known and not any(pattern.fullmatch(name) for pattern in skip)
        ]
        missing = {part for e in resolved.entries if e.theirs not in tensors for part in e.parts}
        self.not_filled = [
            name
            for name, address in resolved.addresses.items()
            if address in missing or name in resolved.unfilled
        ]
        self.addresses = resolved.addresses
        self.differ: dict[str, list[str]] = {}

    def fits(self, entry: Entry, array: np.ndarray) -> bool:
        """Whether the tensor can fill its parameters; if not, it is noted."""
        if array.shape != entry.shape:
            reason = f"has shape {array.shape}, the model {entry.shape}"
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            reason = f"holds {array.dtype}, not floating point"
        elif not np.isfinite(array).all():
            reason = "holds values that are not finite"
        else:
            return True
        self.differ.setdefault(reason, []).append(entry.theirs)
        return False

    def report(self) -> None:
        """Raise if anything was noted."""
        counts: list[str] = []
        lines: list[str] = []
        if self.no_rule:
            counts.append(f"{_count(self.no_rule, 'tensor')} of the checkpoint without a rule")
            lines.append(f"  no rule      {', '.join(compress(self.no_rule))}")
        if self.not_filled:
            counts.append(f"{_count(self.not_filled, 'parameter')} not filled")
            lines.extend(f"  not filled   {line}" for line in self._unfilled_lines())
        for reason, names in self.differ.items():
            counts.append(f"{_count(names, 'tensor')} that cannot be read into the model")
            lines.append(f"  no fit       {', '.join(compress(names))} {reason}")
        if lines:
            raise ConversionError("\n".join([f"{' and '.join(counts)}:", *lines]))

    def _unfilled_lines(self) -> Iterator[str]:
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for name in self.not_filled:
            by_shape.setdefault(self.addresses[name].shape, []).append(name)
        for shape, names in by_shape.items():
            tied = "unembedding.w" in names
            hint = "; the checkpoint ties embeddings: use unembedding=Tied()" if tied else ""
            yield f"{', '.join(compress(names))}  (shape {shape}){hint}"


def _whole(decoder: Decoder, rules: Sequence[Rule]) -> tuple[Entry, ...]:
    """Every tensor of an export; an error where a parameter would be left behind."""
    resolved = plan(decoder, rules)
    if resolved.unfilled:
        raise ConversionError(
            f"{_count(resolved.unfilled, 'parameter')} without a place in the other format: "
            f"{', '.join(compress(resolved.unfilled))}. Export a model of its own parts only."
        )
    return resolved.entries


def _addresses(decoder: Decoder) -> Iterator[tuple[str, Address]]:
    shapes = shapes_of(decoder)
    stacks = {f"stack_{s}" for s in range(len(decoder.stacks))}
    for path, shape in _leaves({k: v for k, v in shapes.items() if k not in stacks}):
        yield ".".join(path), Address(path, None, shape)
    first = 0
    for s, stack in enumerate(decoder.stacks):
        period = len(stack.blocks)
        for repeat, block in itertools.product(range(stack.repeats), range(period)):
            home = (f"stack_{s}", f"block_{block}")
            for path, shape in _leaves(shapes[home[0]][home[1]]):
                name = ".".join(("blocks", str(first + repeat * period + block), *path))
                yield name, Address((*home, *path), repeat, shape[1:])
        first += stack.repeats * period


def _leaves(tree: Params) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from (((name, *path), shape) for path, shape in _leaves(value))
        else:
            yield (name,), tuple(value.shape)


def _names(rule: Rule) -> tuple[str, ...]:
    return (rule.ours,) if isinstance(rule.ours, str) else rule.ours


def _shape_of_part(rule: Rule, part: Address) -> tuple[int, ...]:
    return part.shape if rule.layout is None else parse(rule.layout).their_shape(part.shape)


def _their_shape(rule: Rule, parts: Sequence[Address]) -> tuple[int, ...]:
    shapes = [_shape_of_part(rule, part) for part in parts]
    joined = list(shapes[0])
    joined[rule.axis] = sum(shape[rule.axis] for shape in shapes)
    return tuple(joined)


def _read(params: Params, part: Address) -> np.ndarray:
    leaf: Any = params
    for name in part.path:
        leaf = leaf[name]
    return np.asarray(leaf if part.repeat is None else leaf[part.repeat], np.float32)


def _write(tree: dict[str, Any], entry: Entry, array: np.ndarray) -> None:
    axis, end = entry.rule.axis, 0
    for part in entry.parts:
        begin, end = end, end + _shape_of_part(entry.rule, part)[axis]
        piece = np.moveaxis(np.moveaxis(array, axis, 0)[begin:end], 0, axis)
        if entry.rule.layout is not None:
            piece = parse(entry.rule.layout).to_ours(piece, part.shape)
        leaf: Any = tree
        for name in part.path:
            leaf = leaf[name]
        leaf[... if part.repeat is None else part.repeat] = piece


def _spans(numbers: Sequence[int]) -> str:
    """``{0..3,7}`` of sorted numbers; a single one as it is."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    spans = (str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
    return "{" + ",".join(spans) + "}"


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"
