"""Configs survive JSON, and mistakes in JSON are told with their place and the right name."""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from lm.config import diff, from_plain, to_plain
from lm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Fast:
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Slow:
    rate: float = 0.1
    wait: int | None = None

    def __post_init__(self):
        if self.rate < 0:
            raise ConfigError(f"rate: {self.rate} is negative.")


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    pace: Fast | Slow = Fast()
    steps: tuple[Fast | Slow, ...] = ()
    pair: tuple[int, str] = (1, "x")
    table: dict[str, tuple[str, ...] | str | None] | None = None
    mode: Literal["train", "held_out"] = "train"
    on: bool = True


WHOLE = Whole(
    name="é",
    pace=Slow(rate=2.0, wait=3),
    steps=(Fast(rate=0.5), Slow()),
    table={"batch": ("data", "fsdp"), "embed": "fsdp", "norm": None},
    mode="held_out",
    on=False,
)


def test_configs_survive_json():
    for config in (WHOLE, Whole(name="plain")):
        assert from_plain(Whole, json.loads(json.dumps(to_plain(config)))) == config


def test_equal_fields_of_two_kinds_are_told_apart():
    """Fast and Slow both have a rate: only the kind says which it was."""
    for pace in (Fast(rate=1.0), Slow(rate=1.0)):
        assert type(from_plain(Whole, to_plain(Whole(name="x", pace=pace))).pace) is type(pace)


def test_whole_number_is_read_as_a_float_where_one_is_due():
    rate = from_plain(Fast, {"rate": 2}).rate
    assert rate == 2.0
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "x"}, r"experiment\.nam: no such name\. Did you mean 'name'\?"),
        ({"mode": "trian"}, r"experiment\.mode: 'trian'.*Did you mean 'train'.*'held_out'"),
        ({"pace": {"kind": "Fasst"}}, r"experiment\.pace: kind 'Fasst'.*'Fast'\?.*Fast, Slow"),
        ({"pace": {"kind": "Slow", "rat": 1}}, r"experiment\.pace\.rat: .*Did you mean 'rate'"),
        ({"pace": {"kind": "Slow", "rate": -1}}, r"experiment\.pace: rate: -1\.0 is negative"),
        ({"steps": [{"kind": "Fast"}, {"kind": "x"}]}, r"experiment\.steps\[1\]: kind 'x'"),
        ({"steps": "Fast"}, r"experiment\.steps: expected a list, found 'Fast'"),
        ({"pair": [1]}, r"experiment\.pair: expected 2 values, found 1"),
        ({"pair": [1, 2]}, r"experiment\.pair\[1\]: expected str, found 2"),
        ({"name": 3}, r"experiment\.name: expected str, found 3 \(int\)"),
        ({"on": 1}, r"experiment\.on: expected bool, found 1"),
        ({"pace": {"kind": "Slow", "wait": True}}, r"experiment\.pace\.wait: expected int"),
        ({"pace": {"kind": "Fast", "rate": "0.1"}}, r"rate: expected float, found '0\.1'"),
        ({"kind": "Hole"}, r"expected kind 'Whole', found 'Hole'"),
    ],
)
def test_mistakes_are_told_with_their_place(change, message):
    with pytest.raises(ConfigError, match=message):
        from_plain(Whole, {**to_plain(WHOLE), **change})


def test_missing_name_is_told():
    with pytest.raises(ConfigError, match="experiment: Whole lacks name"):
        from_plain(Whole, {})


def test_what_json_cannot_hold_is_refused():
    @dataclass(frozen=True)
    class Loose:
        value: Any

    with pytest.raises(ConfigError, match="cannot be saved as JSON"):
        to_plain(Loose(print))


def test_a_field_named_kind_is_our_bug():
    @dataclass(frozen=True)
    class Unlucky:
        kind: str

    with pytest.raises(TypeError, match="kind"):
        to_plain(Unlucky("x"))


def test_difference_names_each_place_once():
    new = replace(WHOLE, pace=Slow(rate=3.0, wait=3), on=True)
    assert list(diff(WHOLE, new)) == [("pace.rate", 2.0, 3.0), ("on", False, True)]


def test_another_kind_or_length_is_one_difference():
    (place, old, new) = next(iter(diff(WHOLE, replace(WHOLE, pace=Fast(rate=2.0)))))
    assert (place, old["kind"], new["kind"]) == ("pace", "Slow", "Fast")
    assert [d[0] for d in diff(WHOLE, replace(WHOLE, steps=()))] == ["steps"]


def test_equal_configs_have_no_difference():
    assert not list(diff(WHOLE, from_plain(Whole, to_plain(WHOLE))))


def test_difference_of_json_before_and_after_is_none():
    assert not list(diff(to_plain(WHOLE), json.loads(json.dumps(to_plain(WHOLE)))))


def test_true_is_not_one():
    assert [d[0] for d in diff({"x": True}, {"x": 1})] == ["x"]
    assert not list(diff({"x": 1}, {"x": 1.0}))
