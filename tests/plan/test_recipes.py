"""Recipes say what they were planned for, and what is said is what was compiled."""

import re

import pytest

from lm.cli.config import load_experiment
from tests.plan.golden import GOLDENS, RECIPES, docstring, golden_of, head

TOKENS = {
    "gpt2_124m": 300e9,
    "gpt2_1_5b": 300e9,
    "llama2_7b": 2e12,
    "llama2_7b_32k": 400e9,
    "llama2_7b_128k": 400e9,
    "llama3_8b": 15e12,
    "llama3_70b": 15e12,
}
"""What each is trained on in the paper that it follows."""


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request):
    return request.param


def test_every_golden_has_its_recipe():
    assert {path.stem for path in GOLDENS.iterdir()} == {path.stem for path in RECIPES}


def test_a_docstring_ends_with_the_command_and_headline_of_its_golden(recipe):
    said = head(golden_of(recipe).read_text(encoding="utf-8"))
    assert docstring(recipe).endswith(said), f"end it with:\n{said}"


def test_a_recipe_fits_its_slice(recipe):
    assert "\nFits: " in golden_of(recipe).read_text(encoding="utf-8")


def test_a_recipe_trains_on_as_many_tokens_as_its_paper(recipe):
    training = load_experiment(str(recipe)).training
    tokens = training.steps * training.tokens_per_step
    assert tokens == pytest.approx(TOKENS[recipe.stem], rel=0.02)


def test_a_recipe_is_called_as_its_file_and_computes_in_bfloat16(recipe):
    e = load_experiment(str(recipe))
    assert e.name == recipe.stem
    assert e.execution.compute_dtype == "bfloat16"


@pytest.mark.parametrize("name", ["llama3_8b", "llama3_70b"])
def test_a_large_recipe_keeps_its_chips_busy(name):
    """An MFU of 60 % is in reach, and what blocks is little beside what is computed."""
    golden = (GOLDENS / f"{name}.txt").read_text(encoding="utf-8")
    seconds = {k: float(v) for k, v in re.findall(r"^(compute|blocking) +([\d.]+)$", golden, re.M)}
    reached = re.search(r"MFU at most ([\d.]+) %", golden)
    assert reached is not None
    assert float(reached[1]) >= 60
    assert seconds["blocking"] <= 0.15 * seconds["compute"]
