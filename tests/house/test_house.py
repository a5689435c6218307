"""The house keeps its rules: floors, rooms, bare packages, configs that load."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lm.cli.config import load_experiment
from lm.config import from_plain, to_plain
from lm.experiment import Experiment

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
MODULES = sorted((ROOT / "lm").rglob("*.py"))
PRINTS = ("lm/cli/", "lm/track/console.py")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_imports_go_down_a_floor_and_libraries_stay_in_their_rooms():
    """Needs a console script of import-linter beside this Python."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_config_loads_says_what_it_is_and_is_the_same_read_back_from_json(path, monkeypatch):
    monkeypatch.chdir("/")  # loading touches no file beside the config
    assert ast.get_docstring(parsed(path)), "say what it costs and what to expect"
    experiment = load_experiment(str(path))
    again = from_plain(Experiment, to_plain(experiment))
    assert again == experiment
    assert to_plain(again) == to_plain(experiment)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_config_knows_nothing_of_the_command_line(path):
    assert not {module for module in _imported(parsed(path)) if module.startswith("lm.cli")}


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=name)
def test_a_package_holds_a_docstring_and_nothing_else(path):
    tree = parsed(path)
    assert ast.get_docstring(tree), "say what the package is for"
    rest = tree.body[1:]
    if path == ROOT / "lm" / "__init__.py":
        rest = [x for x in rest if ast.unparse(x).partition(" ")[0] != "__version__"]
    assert not rest


def test_every_module_says_what_it_is():
    assert [name(path) for path in MODULES if not ast.get_docstring(parsed(path))] == []


def test_only_the_command_line_and_the_console_print():
    printing = [
        name(path)
        for path in MODULES
        if not name(path).startswith(PRINTS)
        and any(
            isinstance(x, ast.Call) and isinstance(x.func, ast.Name) and x.func.id == "print"
            for x in ast.walk(parsed(path))
        )
    ]
    assert printing == []


def test_nothing_is_imported_within_a_function():
    late = [
        f"{name(path)}:{inner.lineno}"
        for path in MODULES
        for outer in ast.walk(parsed(path))
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert late == []


def test_user_input_is_never_checked_by_assert():
    """An assert is gone under python -O, and says nothing to a user."""
    found = [
        f"{name(path)}:{x.lineno}"
        for path in MODULES
        for x in ast.walk(parsed(path))
        if isinstance(x, ast.Assert)
    ]
    assert found == []


def test_no_file_names_a_machine_or_a_package_host():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    wrong = re.compile(r"(/home/\w+|/Users/\w+|index-url\s*=)")
    found = []
    for entry in filter(None, tracked.stdout.split("\0")):
        path = ROOT / entry
        if path == Path(__file__) or path.suffix in (".zst", ".png") or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if wrong.search(line):
                found.append(f"{entry}:{number}: {line.strip()[:80]}")
    assert found == []


def _imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for x in ast.walk(tree):
        if isinstance(x, ast.Import):
            names |= {alias.name for alias in x.names}
        elif isinstance(x, ast.ImportFrom) and x.module:
            names.add(x.module)
    return names
