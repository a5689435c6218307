"""A scheduled program as XLA prints it: computations, their instructions, how often loops run.

Only what a plan needs is read: names, shapes, operands and attributes.  Written for the text of
``Compiled.as_text()`` with libtpu 0.0.42 and 0.0.50 and of XLA's CPU compiler.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

WIDTHS = {
    "pred": 1.0,
    "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "f4e2m1fn": 0.5,
    "s8": 1.0, "u8": 1.0,
    "f8e4m3": 1.0, "f8e4m3fn": 1.0, "f8e4m3b11fnuz": 1.0, "f8e4m3fnuz": 1.0,
    "f8e5m2": 1.0, "f8e5m2fnuz": 1.0, "f8e3m4": 1.0, "f8e8m0fnu": 1.0,
    "bf16": 2.0, "f16": 2.0, "s16": 2.0, "u16": 2.0,
    "f32": 4.0, "s32": 4.0, "u32": 4.0,
    "f64": 8.0, "s64": 8.0, "u64": 8.0, "c64": 8.0, "c128": 16.0,
}  # fmt: skip
"""Bytes of one number; what is not here (tokens, opaque) weighs nothing."""

ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
NAME = re.compile(r"%([\w.\-]+)")
PASSING = ("copy", "bitcast", "reshape", "convert", "broadcast")
"""Instructions that hand a number on."""


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    """As printed, layouts included."""
    inside: str
    """What stands between the parentheses: operands, or a constant's value."""
    attributes: str
    """The rest of the line."""
    root: bool

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(NAME.findall(self.inside))

    @property
    def bytes(self) -> float:
        """Bytes of its result, all parts of a tuple together."""
        return bytes_of(self.shape)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern, searched for in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def called(self) -> tuple[str, ...]:
        """Computations that it runs as a part of the program, in order of their mention."""
        one = re.findall(
            r"\b(?:calls|body|called_computation|true_computation|false_computation)=%?([\w.\-]+)",
            self.attributes,
        )
        for many in re.findall(r"\b(?:branch_computations|calls)=\{([^}]*)\}", self.attributes):
            one += re.findall(r"%?([\w.\-]+)", many)
        if self.opcode in ("call", "call-start"):
            one += re.findall(r"\bto_apply=%?([\w.\-]+)", self.attributes)
        return tuple(one)


class Module(NamedTuple):
    """A whole program; instructions stand in the order in which they run."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    def of(self, name: str) -> tuple[Instruction, ...]:
        """A computation's instructions; none where it is not printed."""
        return self.computations.get(name, ())


def parse(text: str) -> Module:
    """Read a program.

    Raises:
        ValueError: the text holds no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, lines = "", "", []
    for line in text.splitlines():
        bare = line.strip()
        if not name:
            head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", bare)
            if head and not bare.startswith("HloModule"):
                name, lines = head[2], []
                entry = name if head[1] else entry
        elif bare == "}" or bare.startswith("}, execution_thread"):
            computations[name] = tuple(lines)
            name = ""
        elif (read := _instruction(bare)) is not None:
            lines.append(read)
    if not entry:
        raise ValueError("no ENTRY computation in the program's text")
    return Module(computations, entry)


def bytes_of(shape: str) -> float:
    """Bytes of an array or of all parts of a tuple, padding not counted."""
    return sum(
        WIDTHS.get(kind, 0.0) * math.prod(int(n.strip("<=")) for n in sizes.split(",") if n)
        for kind, sizes in ARRAY.findall(shape)
    )


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often a ``while`` runs its body; None where the text does not tell.

    The compiler's own ``known_trip_count`` where it is printed, else the constant with which the
    condition compares its counter, counted up from 0 by 1 as ``lax.scan`` does.
    """
    known = loop.attribute(r'"?known_trip_count"?[=:]\s*\{\s*"?n"?[=:]\s*"?(\d+)')
    if known is not None:
        return int(known)
    condition = loop.attribute(r"\bcondition=%?([\w.\-]+)")
    return None if condition is None else _bound(module, condition, {})


def _bound(module: Module, computation: str, given: Mapping[int, int | None]) -> int | None:
    """The trip count that a condition means, with the constants its parameters stand for."""
    values = _constants(module, computation, given)
    by_name = {i.name: i for i in module.of(computation)}
    last = next((i for i in by_name.values() if i.root), None)
    while last is not None and last.opcode in PASSING and last.operands:
        last = by_name.get(last.operands[0])
    if last is None:
        return None
    if last.opcode in ("fusion", "call"):
        inner = {n: values.get(o) for n, o in enumerate(last.operands)}
        return next((_bound(module, c, inner) for c in last.called()), None)
    if last.opcode != "compare" or len(last.operands) != 2:
        return None
    left, right = (values.get(o) for o in last.operands)
    direction = last.attribute(r"\bdirection=(\w+)") or ""
    if right is not None and left is None:
        return {"LT": right, "NE": right, "LE": right + 1}.get(direction)
    if left is not None and right is None:
        return {"GT": left, "NE": left, "GE": left + 1}.get(direction)
    return None


def _constants(
    module: Module, computation: str, given: Mapping[int, int | None]
) -> dict[str, int | None]:
    """The whole numbers in a computation that are known."""
    values: dict[str, int | None] = {}
    for i in module.of(computation):
        if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.inside):
            values[i.name] = int(i.inside)
        elif i.opcode == "parameter":
            values[i.name] = given.get(int(i.inside))
        elif i.opcode in PASSING and i.operands:
            values[i.name] = values.get(i.operands[0])
    return values


def _instruction(line: str) -> Instruction | None:
    """One line, or None where it is none."""
    head = re.match(r"(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    if end <= 0:
        return None
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = re.match(r"([a-z][\w\-]*)\(", rest)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        shape=shape,
        inside=rest[opcode.end() : close],
        attributes=rest[close + 1 :],
        root=head[1] is not None,
    )


def _closing(text: str, start: int) -> int:
    """Place of the parenthesis that closes the one at ``start``; -1 where none does."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return -1


def reachable(module: Module, name: str) -> Iterator[Instruction]:
    """Every instruction of a computation and of what it calls, each computation once."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        for i in module.of(here):
            yield i
            waiting += i.called()
