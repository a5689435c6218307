import pytest

from lm.checkpoint.saving import Saving
from lm.config import from_plain, to_plain
from lm.errors import ConfigError


def test_the_newest_and_every_so_manyth_stay():
    saving = Saving(keep=2, keep_every=20)
    assert saving.retired([5, 10, 20, 25, 30, 35]) == [5, 10, 25]
    assert Saving(keep=2).retired([35, 5, 20]) == [5]


def test_the_only_step_is_never_retired():
    assert Saving(keep=1).retired([7]) == []


@pytest.mark.parametrize("values", [{"every": 0}, {"keep": 0}, {"keep_every": 0}])
def test_values_out_of_range_are_refused_by_name(values):
    with pytest.raises(ConfigError, match=f"saving.{next(iter(values))} is 0"):
        Saving(**values)


def test_it_goes_through_json():
    saving = Saving(every=10, keep_every=100)
    assert from_plain(Saving, to_plain(saving)) == saving
