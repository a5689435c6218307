"""Strict frozen dataclasses <-> JSON values, and the difference of two of them.

A dataclass becomes ``{"kind": "ClassName", field: value, ...}``; tuples become lists.  Reading is
strict: an unknown name, a missing one or a value of another type is a ``ConfigError`` that names
the place and the nearest right name.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, cast

from lm.errors import ConfigError, did_you_mean

T = TypeVar("T")
Plain = Any
"""What JSON can hold: None, bool, int, float, str, list, dict."""


def to_plain(value: object) -> Plain:
    """The JSON value of a config.

    Raises:
        ConfigError: a value that JSON cannot hold (a function, an array).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if "kind" in plain:
            raise TypeError(f"{type(value).__name__}.kind: JSON needs this name for the class.")
        return {"kind": type(value).__name__, **plain}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in cast("list[object]", value)]
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): to_plain(item) for key, item in items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"a {type(value).__name__} ({value!r}) cannot be saved as JSON. Use numbers, strings, "
        "tuples, dicts and frozen dataclasses in an experiment."
    )


def from_plain(kind: type[T], plain: Plain, where: str = "experiment") -> T:
    """The config of type ``kind`` that ``plain`` describes; the inverse of ``to_plain``.

    Raises:
        ConfigError: a name, kind or value that does not fit; the message says where.
    """
    return cast(T, _read(kind, plain, where))


def read_value(kind: Any, plain: Plain, where: str) -> Any:
    """As ``from_plain``, for any type that a field may be declared with.

    Raises:
        ConfigError: a name, kind or value that does not fit; the message says where.
    """
    return _read(kind, plain, where)


def diff(old: object, new: object, where: str = "") -> Iterator[tuple[str, Plain, Plain]]:
    """Each place where two configs differ, as (dotted path, old value, new value)."""
    yield from _diff(to_plain(old), to_plain(new), where)


def _diff(old: Plain, new: Plain, where: str) -> Iterator[tuple[str, Plain, Plain]]:
    if isinstance(old, dict) and isinstance(new, dict):
        a, b = cast("dict[str, Plain]", old), cast("dict[str, Plain]", new)
        if a.get("kind") == b.get("kind"):
            for key in [*a, *(key for key in b if key not in a)]:
                yield from _diff(a.get(key), b.get(key), f"{where}.{key}" if where else key)
            return
    if isinstance(old, list) and isinstance(new, list):
        xs, ys = cast("list[Plain]", old), cast("list[Plain]", new)
        if len(xs) == len(ys):
            for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
                yield from _diff(x, y, f"{where}[{i}]")
            return
    kinds: set[type[Any]] = {type(cast(Any, old)), type(cast(Any, new))}
    if cast(Any, old) != cast(Any, new) or (len(kinds) > 1 and kinds != {int, float}):
        yield where, cast(Any, old), cast(Any, new)


def _read(kind: Any, plain: Plain, where: str) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return plain
    if origin in (Union, types.UnionType):
        return _read_union(arguments, plain, where)
    if origin is Literal:
        if plain not in arguments:
            raise ConfigError(
                f"{where}: {plain!r} is not a choice. "
                f"{did_you_mean(str(plain), map(str, arguments))}"
                f"Choose from: {', '.join(map(repr, arguments))}."
            )
        return plain
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(cast("type[object]", kind), plain, where)
    if origin in (tuple, list, dict) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return _read_container(origin, arguments, plain, where)
    return _read_scalar(kind, plain, where)


def _read_union(choices: tuple[Any, ...], plain: Plain, where: str) -> object:
    if plain is None and type(None) in choices:
        return None
    if isinstance(plain, dict) and "kind" in plain:
        name = cast("dict[str, Plain]", plain)["kind"]
        classes = [c for c in choices if isinstance(c, type) and dataclasses.is_dataclass(c)]
        kinds: dict[str, Any] = {c.__name__: c for c in classes}
        if name not in kinds:
            raise ConfigError(
                f"{where}: kind {name!r} is not on the menu here. {did_you_mean(name, kinds)}"
                f"Choose from: {', '.join(kinds)}. A kind of your own works from a Python config; "
                "to be reloaded from JSON it must stand in the union of lm/experiment.py."
            )
        return _read(kinds[name], plain, where)
    problems: list[str] = []
    for choice in choices:
        try:
            return _read(choice, plain, where)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(problems[0])


def _read_dataclass(kind: type[object], plain: Plain, where: str) -> object:
    if not isinstance(plain, dict):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {plain!r}.")
    values = {k: v for k, v in cast("dict[str, Plain]", plain).items() if k != "kind"}
    named = cast("dict[str, Plain]", plain).get("kind", kind.__name__)
    if named != kind.__name__:
        raise ConfigError(f"{where}: expected kind {kind.__name__!r}, found {named!r}.")
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(cast(Any, kind))}
    for name in values:
        if name not in fields:
            raise ConfigError(
                f"{where}.{name}: no such name. {did_you_mean(name, fields)}"
                f"Choose from: {', '.join(fields)}."
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: {kind.__name__} lacks {', '.join(missing)}.")
    read = {name: _read(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return kind(**read)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


@functools.cache
def _hints(kind: type[object]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read_container(origin: Any, arguments: tuple[Any, ...], plain: Plain, where: str) -> object:
    if origin is tuple or origin is list:
        if not isinstance(plain, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {plain!r}.")
        items = list(cast("list[Plain]", plain))
        if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
            kinds = [arguments[0]] * len(items)
        elif len(arguments) == len(items):
            kinds = list(arguments)
        else:
            raise ConfigError(f"{where}: expected {len(arguments)} values, found {len(items)}.")
        read = [
            _read(k, item, f"{where}[{i}]")
            for i, (k, item) in enumerate(zip(kinds, items, strict=True))
        ]
        return read if origin is list else tuple(read)
    if not isinstance(plain, dict):
        raise ConfigError(f"{where}: expected a mapping, found {plain!r}.")
    entries = cast("dict[str, Plain]", plain).items()
    return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in entries}


def _read_scalar(kind: Any, plain: Plain, where: str) -> object:
    if kind is type(None) and plain is None:
        return None
    if kind is float and isinstance(plain, (int, float)) and not isinstance(plain, bool):
        return float(plain)
    if kind in (int, str, bool, float) and type(plain) is kind:
        return plain
    name = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{where}: expected {name}, found {plain!r} ({type(plain).__name__}).")
