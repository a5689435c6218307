"""A config file or experiment.json to an Experiment, and values changed on the command line."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from lm.config import from_plain
from lm.errors import ConfigError, UserError, did_you_mean
from lm.experiment import Experiment


def load_experiment(given: str) -> Experiment:
    """The experiment of ``path.py[:function]`` or of an ``experiment.json``.

    Raises:
        ConfigError: no such file or function, or one that does not give an Experiment.
    """
    name, _, function = given.partition(":") if not Path(given).exists() else (given, "", "")
    path = Path(name)
    if path.is_dir() and (path / "experiment.json").is_file():
        path = path / "experiment.json"
    if not path.is_file():
        raise ConfigError(_missing(path))
    if path.suffix == ".json":
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: not JSON: {error}.") from error
        return from_plain(Experiment, plain, str(path))
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a config is a Python file or an experiment.json.")
    return _from_python(path, function or "experiment")


def override(experiment: Experiment, words: Sequence[str], prog: str) -> Experiment:
    """The experiment with values replaced, as ``--optimizer.schedule.peak 2e-4``.

    Raises:
        ConfigError: an unknown name or a value of the wrong kind, with the nearest right one.
        SystemExit: help was asked for and printed.
    """
    if not words:
        return experiment
    names = dict(_names(experiment))
    for word in words:
        if not word.startswith("--") or word == "--help":
            continue
        name = word[2:].split("=")[0].replace("-", "_")
        if name not in names:
            raise ConfigError(f"{name}: {_unknown(name, names)}")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                Experiment,
                prog=prog,
                default=experiment,
                args=list(words),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise ConfigError(_paragraph(told.getvalue(), prog)) from exit_


def _from_python(path: Path, function: str) -> Experiment:
    spec = importlib.util.spec_from_file_location(f"lm_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if not callable(make):
            there = [
                n for n, v in vars(module).items() if callable(v) and v.__module__ == spec.name
            ]
            raise ConfigError(
                f"{path}: no function {function!r}. {did_you_mean(function, there)}"
                f"It has: {', '.join(there) or 'none'}."
            )
        made = make()
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {error}. Mend the config.") from error
    if not isinstance(made, Experiment):
        raise ConfigError(f"{path}: {function}() gives a {type(made).__name__}, not an Experiment.")
    return made


def _missing(path: Path) -> str:
    folder = path.parent
    near = [str(p) for p in folder.glob("*") if p.suffix in (".py", ".json") or p.is_dir()]
    there = f"{folder} does not exist either. " if not folder.is_dir() else ""
    hint = f"{there}{did_you_mean(str(path), near)}"
    return f"{path}: no such config. {hint}Give a path like configs/quickstart.py."


def _names(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that can be set, by its dotted name."""
    if dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _names(getattr(value, f.name), f"{path}.{f.name}" if path else f.name)
    elif isinstance(value, tuple) and any(dataclasses.is_dataclass(x) for x in value):
        for i, item in enumerate(value):
            yield from _names(item, f"{path}.{i}")
    else:
        yield path, value


def _unknown(name: str, names: dict[str, Any]) -> str:
    kinds = sorted({n[: len(name)] for n in names if n.startswith(name + ".")})
    if kinds:
        below = [n for n in names if n.startswith(name + ".")]
        return (
            "is a part, not a value; the command line changes values, a config file changes parts. "
            f"Its values: {', '.join('--' + n for n in below[:6])}."
        )
    parent = name.rpartition(".")[0]
    siblings = [n for n in names if n.rpartition(".")[0] == parent]
    return (
        f"no such name. {did_you_mean('--' + name, ['--' + n for n in names])}"
        + (f"Beside it stand: {', '.join('--' + n for n in siblings[:8])}." if siblings else "")
    ).strip()


def _paragraph(told: str, prog: str) -> str:
    """Tyro's box as one paragraph."""
    plain = re.sub(r"[│╭╮╰╯─┌┐└┘]", " ", told)
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*-{10,}\s*\n", plain)]
    said = [p for p in parts[1:] if p and not p.startswith("For full helptext")]
    return f"{' '.join(said) or ' '.join(plain.split())} See: {prog} --help"
