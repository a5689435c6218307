"""What is planned, and how it may be changed."""

import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lm.layers.execution import Execution
from lm.models.flops import Flops
from lm.parallel.mesh import Mesh
from lm.plan.hardware import Slice
from lm.train.program import Program
from lm.train.step import Training


class Question(NamedTuple):
    """A run's own step on devices that need not be here."""

    name: str
    program: Program
    training: Training
    execution: Execution
    mesh: Mesh
    optimizer: Any
    flops: Flops
    """Of one token in training, by the model's formula."""
    asked: Slice

    @property
    def step_flops(self) -> float:
        """Operations of a step that the model needs, attention counted causal."""
        return self.flops.causal * self.training.tokens_per_step


class Change(NamedTuple):
    """Another way to run the same experiment."""

    settings: tuple[tuple[str, str], ...]
    """(dotted name in the experiment, value), as on the command line."""
    slices: int | None = None
    """More slices than were asked for."""

    @property
    def words(self) -> str:
        """As they are added to the command."""
        parts = [f"--{name} {value}" for name, value in self.settings]
        if self.slices is not None:
            parts.append(f"--slices {self.slices}")
        return " ".join(parts)

    def __add__(self, other: Any) -> "Change":
        """Both changes."""
        return Change(self.settings + other.settings, other.slices or self.slices)


Rebuild = Callable[[Change], Question]
"""The question with a change made; raises a ``UserError`` where the change is impossible."""


def remat_choices() -> tuple[str, ...]:
    """The names that ``Execution.remat`` may have."""
    return tuple(_names(typing.get_type_hints(Execution)["remat"]))


def _names(kind: Any) -> Iterator[str]:
    for choice in typing.get_args(kind):
        if isinstance(choice, str):
            yield choice
        else:
            yield from _names(choice)
