"""Candidates are compiled in the order of their cost until three fit."""

from lm.errors import ShardingError
from lm.plan.changes import Candidate, Tried, cheapest, fitting
from lm.plan.compiled import CompileError
from lm.plan.question import Change


def candidate(*settings):
    return Candidate(Change(tuple(settings)), 0.0, 1.0)


def rebuild(change):
    if ("mesh", "3") in change.settings:
        raise ShardingError("3 does not divide 8")
    return change


def attempt(change, question):
    if ("mesh", "kernel") in change.settings:
        raise CompileError("no such kernel")
    fits = all(value != "little" for _, value in change.settings)
    return Tried(change, fits, 1.0, float(len(change.words)))


def names(tried):
    return [t.change.words for t in tried]


def test_three_that_fit_are_enough():
    found = [candidate((letter, "much")) for letter in "abcdef"]
    tried = cheapest(found, rebuild, attempt, lambda _: None)
    assert names(tried) == ["--a much", "--b much", "--c much"]


def test_what_does_not_fit_is_told_and_the_next_is_tried():
    said = []
    found = [candidate(("a", "little")), candidate(("b", "much"))]
    tried = cheapest(found, rebuild, attempt, said.append)
    assert [t.fits for t in tried] == [False, True]
    assert names(fitting(tried)) == ["--b much"]
    assert said[0] == "trying     --a little"
    assert "does not fit" in said[1]


def test_a_change_that_is_impossible_or_refused_is_passed_over():
    found = [candidate(("mesh", "3")), candidate(("mesh", "kernel")), candidate(("b", "much"))]
    assert names(cheapest(found, rebuild, attempt, lambda _: None)) == ["--b much"]


def test_more_than_what_is_enough_is_not_tried():
    found = [candidate(("a", "much")), candidate(("a", "much"), ("b", "much"))]
    assert names(cheapest(found, rebuild, attempt, lambda _: None)) == ["--a much"]


def test_changes_are_written_as_they_are_given_to_the_command():
    both = Change((("execution.remat", "block"),)) + Change((), slices=2)
    assert both.words == "--execution.remat block --slices 2"
