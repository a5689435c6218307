"""The plan of every recipe is the one that was reviewed."""

import difflib

import pytest

from tests.plan.golden import (
    RECIPES,
    compilers_here,
    compilers_of,
    golden_of,
    planned,
    text,
)

pytestmark = pytest.mark.tpu_compile
SMALL = ("gpt2_124m", "gpt2_1_5b")
"""Those that the gate always compiles; a large one takes a minute or two."""


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(r, marks=() if r.stem in SMALL else pytest.mark.slow, id=r.stem)
        for r in RECIPES
    ],
)
def test_a_recipe_needs_what_its_golden_says(recipe):
    golden = golden_of(recipe).read_text(encoding="utf-8")
    if compilers_of(golden) != compilers_here():
        pytest.skip(f"made by {compilers_of(golden)}; here is {compilers_here()}")
    found = text(recipe, planned(recipe))
    if found != golden:
        lines = (x.splitlines(keepends=True) for x in (golden, found))
        pytest.fail(
            "".join(difflib.unified_diff(*lines, golden_of(recipe).name, "now"))
            + f"\nIf the change is meant: make goldens NAMES={recipe.stem}",
            pytrace=False,
        )
