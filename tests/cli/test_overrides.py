"""Values on the command line: read by the type of their field, changed all together."""

from dataclasses import replace

import pytest

from lm.cli.config import load_experiment
from lm.cli.overrides import override, places
from lm.config import diff, to_plain
from lm.errors import ConfigError
from lm.experiment import Samples
from tests.cli.conftest import TINY


@pytest.fixture
def tiny():
    return load_experiment(str(TINY))


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        ("--training.steps 500", "training.steps", 500),
        ("--training.steps=500", "training.steps", 500),
        ("--training.steps 3 --training.steps 500", "training.steps", 500),
        ("--optimizer.schedule.peak 2e-4", "optimizer.schedule.peak", 2e-4),
        ("--optimizer.clip None", "optimizer.clip", None),
        ("--optimizer.decay 1", "optimizer.decay", 1.0),
        ("--parallel.mesh.fsdp -1", "parallel.mesh.fsdp", -1),
        ("--execution.compute-dtype bfloat16", "execution.compute_dtype", "bfloat16"),
        ("--tracking.console false", "tracking.console", False),
        ("--evaluation.every 20", "evaluation.every", 20),
        ("--model.stacks.0.repeats 4", "model.stacks[0].repeats", 4),
        ("--data.sources.0.weight 2", "data.sources[0].weight", 2.0),
        ("--parallel.rules {}", "parallel.rules", {}),
    ],
)
def test_a_value_is_changed_and_nothing_else(tiny, words, path, value):
    changed = override(tiny, words.split())
    if path == "parallel.rules":
        assert changed.parallel.rules == value
        return
    differences = list(diff(tiny, changed))
    if path == "parallel.mesh.fsdp":
        assert differences == []
        return
    assert [(where, new) for where, _, new in differences] == [(path, value)]


def test_several_words_are_one_tuple(tiny):
    given = replace(tiny, evaluation=replace(tiny.evaluation, samples=Samples()))
    changed = override(given, ["--evaluation.samples.prompts", "ROMEO.", "JULIET and ROMEO."])
    assert changed.evaluation.samples.prompts == ("ROMEO.", "JULIET and ROMEO.")


@pytest.mark.parametrize(
    "words", [["--evaluation.samples.prompts="], ["--evaluation.samples.prompts"]]
)
def test_a_tuple_can_be_emptied(tiny, words):
    given = replace(tiny, evaluation=replace(tiny.evaluation, samples=Samples(prompts=("A",))))
    assert override(given, words).evaluation.samples.prompts == ()


def test_a_part_that_may_be_missing_can_be_left_out(tiny):
    given = replace(tiny, evaluation=replace(tiny.evaluation, samples=Samples()))
    assert override(given, ["--evaluation.samples", "None"]).evaluation.samples is None


def test_values_that_must_agree_are_checked_together(tiny):
    """Each alone would be refused: rows of 4 000 steps of warm-up in a run of 40."""
    words = ["--training.length", "256", "--training.sequences", "16", "--name", "other"]
    changed = override(tiny, words)
    assert (changed.training.length, changed.training.sequences) == (256, 16)
    assert changed.name == "other"


@pytest.mark.parametrize(
    "words",
    [
        "--training.steps 1.5",
        "--training.steps True",
        "--training.steps 1 2",
        "--tracking.console 1",
        "--optimizer.clip nan_",
        "--parallel.rules [1]",
        "--model.stacks.1.repeats 2",
        "--model.stacks None",
        "--execution.remat some",
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(tiny, words):
    with pytest.raises(ConfigError, match=words.split()[0]):
        override(tiny, words.split())


def test_every_value_has_a_place_and_can_be_set_to_what_it_is(tiny):
    for name, place in places(tiny):
        value = place.value
        if isinstance(value, (bool, int, float, str)) or value is None:
            assert to_plain(override(tiny, [f"--{name}", str(value)])) == to_plain(tiny), name
