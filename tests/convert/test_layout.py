import numpy as np
import pytest

from lm.convert.layout import parse


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("(n h) d -> d n h", (5, 2, 3)),
        ("d (n h) -> n h d", (2, 3, 5)),
        ("(n h) -> n h", (2, 3)),
        ("v d -> d v", (5, 7)),
        ("d -> d", (5,)),
    ],
)
def test_both_directions_undo_each_other(text, shape):
    ours = np.random.default_rng(0).standard_normal(shape)
    layout = parse(text)
    theirs = layout.to_theirs(ours)
    assert theirs.shape == layout.their_shape(shape)
    np.testing.assert_array_equal(layout.to_ours(theirs, shape), ours)


def test_folded_dimensions_run_slowest_first():
    theirs = np.arange(12).reshape(6, 2)
    ours = parse("(n h) d -> d n h").to_ours(theirs, (2, 2, 3))
    assert ours[1, 0, 2] == theirs[2, 1]
    assert ours[0, 1, 0] == theirs[3, 0]


@pytest.mark.parametrize("text", ["a b -> a", "a b", "a a -> a a", "(a b) c -> a b d", ""])
def test_sides_that_differ_are_refused(text):
    with pytest.raises(ValueError, match="same dimensions"):
        parse(text)
