"""The one notation for how a tensor lies in another format: ``"(n h) d -> d n h"``."""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """A reshape and a transpose that can be undone.

    Each letter is a dimension of ours; theirs may fold several into one, written in brackets, the
    slowest first.
    """

    theirs: tuple[tuple[str, ...], ...]
    ours: tuple[str, ...]

    @property
    def flat(self) -> tuple[str, ...]:
        """Their dimensions unfolded."""
        return tuple(letter for group in self.theirs for letter in group)

    def their_shape(self, our_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that one of our parameters has in the other format."""
        sizes = dict(zip(self.ours, our_shape, strict=True))
        return tuple(math.prod(sizes[letter] for letter in group) for group in self.theirs)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Our array as it lies in the other format."""
        order = [self.ours.index(letter) for letter in self.flat]
        return array.transpose(order).reshape(self.their_shape(array.shape))

    def to_ours(self, array: np.ndarray, our_shape: Sequence[int]) -> np.ndarray:
        """Their array as one of ``our_shape``; the inverse of ``to_theirs``."""
        sizes = dict(zip(self.ours, our_shape, strict=True))
        unfolded = array.reshape([sizes[letter] for letter in self.flat])
        return unfolded.transpose([self.flat.index(letter) for letter in self.ours])


@functools.cache
def parse(text: str) -> Layout:
    """The layout that a text describes, theirs on the left and ours on the right.

    Raises:
        ValueError: two sides that do not name the same dimensions, each once.
    """
    left, _, right = text.partition("->")
    groups = tuple(tuple(g.strip("()").split()) for g in re.findall(r"\([^)]*\)|[^\s()]+", left))
    layout = Layout(groups, tuple(right.split()))
    if not layout.ours or sorted(layout.flat) != sorted(set(layout.ours)):
        raise ValueError(f"layout {text!r}: both sides must name the same dimensions, each once.")
    return layout
