"""Values of an experiment that are changed on the command line.

``--optimizer.schedule.peak 2e-4`` names a value by its place in the experiment; parts (dataclasses)
are changed in a config file.  All changes are made together, so that what two of them agree on is
checked once.
"""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Union

from lm.config import read_value
from lm.errors import ConfigError, did_you_mean
from lm.experiment import Experiment

NONE = ("None", "none", "null")
BOOLEANS = {"True": True, "true": True, "False": False, "false": False}


class Place(NamedTuple):
    """A value that can be set."""

    value: Any
    """As the experiment has it."""
    kind: Any
    """The type that its field is declared with."""


class _Change(NamedTuple):
    value: Any


def override(experiment: Experiment, words: Sequence[str]) -> Experiment:
    """The experiment with values replaced, as ``--optimizer.schedule.peak 2e-4`` says.

    Raises:
        ConfigError: an unknown name or a value of the wrong kind, with the nearest right one.
    """
    if not words:
        return experiment
    known = dict(places(experiment))
    tree: dict[str, Any] = {}
    for name, given in _pairs(words):
        place = _place(experiment, name, given, known)
        *parents, last = name.split(".")
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
        if not isinstance(node, dict):
            raise ConfigError(f"--{name}: {'.'.join(parents)} is given as well. Give one of both.")
        node[last] = _Change(_read(place, given, name))
    try:
        return _rebuilt(experiment, tree)
    except ConfigError as error:
        raise ConfigError(f"{' '.join(words)}: {error}") from error


def places(value: Any, kind: Any = Experiment, path: str = "") -> Iterator[tuple[str, Place]]:
    """Every value that can be set, by its dotted name."""
    if dataclasses.is_dataclass(value):
        kinds = typing.get_type_hints(type(value))
        for f in dataclasses.fields(value):
            below = f"{path}.{f.name}" if path else f.name
            yield from places(getattr(value, f.name), kinds[f.name], below)
    elif isinstance(value, tuple) and any(dataclasses.is_dataclass(x) for x in value):
        for i, item in enumerate(value):
            yield from places(item, Any, f"{path}.{i}")
    else:
        yield path, Place(value, kind)


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(dotted name, the words of its value) for each option."""
    name, given = "", []
    for word in words:
        if word.startswith("--"):
            if name:
                yield name, given
            option, equals, value = word[2:].partition("=")
            name, given = option.replace("-", "_"), [value] if equals else []
        elif not name:
            raise ConfigError(
                f"{word!r}: stands alone. Changes are written as --NAME VALUE, for instance "
                "--training.steps 500."
            )
        else:
            given.append(word)
    yield name, given


def _place(experiment: Experiment, name: str, given: list[str], known: dict[str, Place]) -> Place:
    if name in known:
        return known[name]
    below = [n for n in known if n.startswith(name + ".")]
    if not below:
        raise ConfigError(_unknown(name, known))
    if len(given) == 1 and given[0] in NONE:  # a part that may be left out
        parent, _, field = name.rpartition(".")
        owner = functools.reduce(_member, parent.split(".") if parent else [], experiment)
        kind = typing.get_type_hints(type(owner)).get(field)
        if type(None) in typing.get_args(kind):
            return Place(None, type(None))
    raise ConfigError(
        f"--{name}: a part, not a value. The command line changes values, a config file changes "
        f"parts. Its values: {', '.join('--' + n for n in below[:6])}."
    )


def _member(value: Any, key: str) -> Any:
    return value[int(key)] if isinstance(value, tuple) else getattr(value, key)


def _unknown(name: str, known: dict[str, Place]) -> str:
    parent = name.rpartition(".")[0]
    beside = [n for n in known if n.rpartition(".")[0] == parent]
    hint = did_you_mean("--" + name, ["--" + n for n in known])
    there = f"Beside it stand: {', '.join('--' + n for n in beside[:8])}." if beside else ""
    return f"--{name}: no such name. {hint}{there or 'lm train CONFIG --help lists all.'}"


def _rebuilt(value: Any, tree: dict[str, Any]) -> Any:
    """The value with the changes of a tree made, the innermost parts first."""
    if isinstance(value, tuple):
        return tuple(
            _changed(item, tree[str(i)]) if str(i) in tree else item for i, item in enumerate(value)
        )
    new = {name: _changed(getattr(value, name), node) for name, node in tree.items()}
    return dataclasses.replace(value, **new)


def _changed(value: Any, node: Any) -> Any:
    return node.value if isinstance(node, _Change) else _rebuilt(value, node)


def _read(place: Place, given: list[str], name: str) -> Any:
    """The value that some words mean where this kind of value is wanted."""
    options = _options(place.kind)
    if type(None) in options and len(given) == 1 and given[0] in NONE:
        return None
    for option in options:
        try:
            return read_value(option, _plain(option, given), name)
        except (ConfigError, ValueError):
            continue
    told = " ".join(given)
    said = (
        f"{told!r} is not {_spell(options)}" if given else f"no value; it takes {_spell(options)}"
    )
    choices = [
        str(c) for o in options if typing.get_origin(o) is Literal for c in typing.get_args(o)
    ]
    raise ConfigError(
        f"--{name}: {said}. {did_you_mean(told, choices)}It is now {_shown(place.value)}."
    )


def _options(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _plain(kind: Any, given: list[str]) -> Any:
    """The words as JSON would hold them for this type.

    Raises:
        ValueError: they cannot be of this type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        # `--execution.save=` empties a row.
        return [_plain(arguments[0], [word]) for word in given if given != [""]]
    (word,) = given
    if kind is str:
        return word
    if kind is bool:
        return BOOLEANS.get(word, word)
    if kind in (int, float):
        return kind(word)
    if origin is Literal:
        return next((choice for choice in arguments if str(choice) == word), word)
    return json.loads(word)


def _spell(options: Sequence[Any]) -> str:
    return " or ".join(_spell_one(option) for option in options)


def _spell_one(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a row of values, each {_spell_one(arguments[0])}"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    if kind is type(None):
        return "None"
    return names.get(kind, "JSON of its kind")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
