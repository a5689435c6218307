"""Golden plans: what each recipe's step needs on its slice, as text that is read in review.

python -m tests.plan.golden [NAME...]   (``make goldens``) compiles the recipes again and rewrites
their goldens and the headlines in their docstrings.
"""

import ast
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.cli.main import main as lm
from lm.plan.planning import versions
from lm.track.format import count

ROOT = Path(__file__).parents[2]
GOLDENS = Path(__file__).with_name("goldens")
RECIPES = sorted((ROOT / "configs" / "pretrain").glob("*.py"))
PARTS = ("parameters", "optimizer", "gradients", "activations", "temporaries", "code")
COMPILERS = ("jax", "libtpu")
HEAD = re.compile(r"^lm (plan configs/\S+\.py --topology .*)(?:\n\S.*)*", re.MULTILINE)
"""The command that plans a recipe, and the headline below it; ends its docstring."""


def golden_of(recipe: Path) -> Path:
    return GOLDENS / f"{recipe.stem}.txt"


def command(recipe: Path) -> str:
    """The words after ``lm`` that its docstring plans it with."""
    said = HEAD.search(docstring(recipe))
    if said is None:
        raise ValueError(f"{recipe}: name the slice in the docstring: lm plan ... --topology ...")
    return said[1]


def docstring(recipe: Path) -> str:
    return ast.get_docstring(ast.parse(recipe.read_text(encoding="utf-8"))) or ""


def planned(recipe: Path) -> dict[str, Any]:
    """The plan as ``lm plan`` gives it to machines."""
    program, config, *rest = command(recipe).split()
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "plan.json"
        code = lm([program, str(ROOT / config), *rest, "--json", str(figures)])
        if not figures.exists():
            raise RuntimeError(f"lm {command(recipe)}: exit code {code} and no plan")
        return json.loads(figures.read_text(encoding="utf-8"))


def text(recipe: Path, plan: dict[str, Any]) -> str:
    """The golden of a plan: nothing in it depends on the machine that compiles."""
    return "\n".join([*_lines(recipe, plan), ""])


def head(golden: str) -> str:
    """The command and the headline; a recipe's docstring ends with them."""
    return golden.partition("\n\n")[0]


def compilers_of(golden: str) -> str:
    """The pair with which it was made."""
    return re.findall("^compiled by (.*)$", golden, re.MULTILINE)[0]


def compilers_here() -> str:
    return _pair(versions())


def compilers_wanted() -> str:
    """The pair of constraints.txt, which all goldens have."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = dict(re.findall(r'^(\w+)==([\w.]+); python_version >= "3.12"$', pinned, re.MULTILINE))
    return _pair(found)


def _pair(known: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {known[name]}" for name in COMPILERS)


def _lines(recipe: Path, plan: dict[str, Any]) -> Iterator[str]:
    h, b = plan["hbm_gib"], plan["bound_seconds"]
    yield f"lm {command(recipe)}"
    if not plan["fits"]:
        yield f"Does not fit: {h['peak']:.2f} GiB a device, {h['limit']:.2f} are there."
    else:
        yield (
            f"Fits: {h['peak']:.2f} of {h['limit']:.2f} GiB a device; MFU at most "
            f"{100 * plan['mfu_ceiling']:.1f} %, a step {b['step']:.3g} s or longer:"
        )
        rate = plan["tokens_per_step"] / b["step"]
        yield (
            f"{count(rate)} tokens a second, {count(plan['tokens'])} in {plan['days']:.1f} days, "
            f"{count(plan['chip_hours'])} chip-hours."
        )
    yield ""
    yield f"compiled by {_pair(plan['versions'])}"
    always = ("data", "fsdp", "tensor")
    axes = (
        f"{axis} {' x '.join(map(str, sizes))}"
        for axis, sizes in plan["mesh"].items()
        if axis in always or sizes != [1]
    )
    yield f"mesh {', '.join(axes)}"
    yield ""
    yield "GiB of a device"
    for part in ("peak", *PARTS):
        yield f"{part:<14}{h[part]:>8.2f}"
    yield ""
    yield "seconds of a step, at least"
    for kind in ("compute", "hbm", "ici", "dcn", "blocking", "step"):
        told = "-" if b[kind] is None else f"{b[kind]:.3f}"
        yield f"{kind:<14}{told:>8}"
    yield ""
    yield f"{'collectives':<20}{'axes':<16}{'':<11}{'a step':>7}{'GiB on the wire':>17}"
    for row in plan["collectives"] or ():
        how = "overlapped" if row["overlapped"] else "blocking"
        yield (
            f"{row['kind']:<20}{'+'.join(row['axes']):<16}{how:<11}{row['count_per_step']:>7}"
            f"{row['wire_gib_per_step']:>17.2f}"
        )


def accept(recipe: Path) -> bool:
    """Compile a recipe and keep what comes out; returns whether something changed."""
    made = text(recipe, planned(recipe))
    source = recipe.read_text(encoding="utf-8")
    said = docstring(recipe)
    mended = source.replace(said, HEAD.sub(lambda _: head(made), said), 1)
    return _keep(golden_of(recipe), made) | _keep(recipe, mended)


def _keep(path: Path, new: str) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == new:
        return False
    temporary = path.with_suffix(".tmp")
    temporary.write_text(new, encoding="utf-8")
    temporary.replace(path)
    return True


def main(names: list[str]) -> int:
    if compilers_here() != compilers_wanted():
        print(
            f"goldens: made with {compilers_wanted()} (constraints.txt), and here is "
            f"{compilers_here()}. Use a Python of 3.12 or later: "
            "make goldens PYTHON=python3.13 VENV=.venv-plan",
            file=sys.stderr,
        )
        return 2
    known = {recipe.stem: recipe for recipe in RECIPES}
    if unknown := set(names) - set(known):
        print(f"goldens: no recipe {', '.join(unknown)}; {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        print(f"goldens    {name}: {'changed' if accept(known[name]) else 'as it was'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
