"""A config file, or an ``experiment.json``, to an Experiment."""

import importlib.util
import json
import sys
import traceback
from pathlib import Path

from lm.config import from_plain
from lm.errors import ConfigError, UserError, did_you_mean
from lm.experiment import Experiment


def load_experiment(given: str) -> Experiment:
    """The experiment of ``path.py[:function]``, of an ``experiment.json`` or of a run's folder.

    Raises:
        ConfigError: no such file or function, or one that does not give an Experiment.
    """
    name, _, function = (given, "", "") if Path(given).exists() else given.partition(":")
    path = Path(name)
    if path.is_dir() and (path / "experiment.json").is_file():
        path = path / "experiment.json"
    if not path.is_file():
        raise ConfigError(_missing(path))
    if path.suffix == ".json":
        return _from_json(path)
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a config is a Python file or an experiment.json.")
    return _from_python(path, function or "experiment")


def _from_json(path: Path) -> Experiment:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: not JSON ({error}). Give the experiment.json of a run, or the Python file "
            "that it was made with."
        ) from error
    return from_plain(Experiment, plain, str(path))


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
            there = [n for n, v in vars(module).items() if _is_own(v, spec.name)]
            raise ConfigError(
                f"no function {function!r}. {did_you_mean(function, there)}"
                f"It has: {', '.join(there) or 'none'}."
            )
        made = make()
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # whatever a config does wrong is its author's to mend
        told = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(
            f"{_where(path, error)}: {type(error).__name__}: {told}. Mend the config."
        ) from error
    if not isinstance(made, Experiment):
        raise ConfigError(
            f"{path}: {function}() gives a {type(made).__name__}, not an Experiment. Let it return "
            "one."
        )
    return made


def _is_own(value: object, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module


def _where(path: Path, error: Exception) -> str:
    """The line of the config at which it went wrong."""
    told = (str(path), str(path.absolute()))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in told]
    line = frames[-1].lineno if frames else getattr(error, "lineno", None)
    return f"{path}:{line}" if line else str(path)


def _missing(path: Path) -> str:
    if path.is_dir():
        return (
            f"{path}: a folder without an experiment.json. Give a config, or the folder of a run."
        )
    folder = path.parent
    near = [str(p) for p in folder.glob("*") if p.suffix in (".py", ".json") or p.is_dir()]
    there = f"{folder} does not exist either. " if not folder.is_dir() else ""
    hint = f"{there}{did_you_mean(str(path), near)}"
    return f"{path}: no such config. {hint}Give a path like configs/quickstart.py, before all else."
