"""An experiment as the question that a plan answers: its program on devices that are elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lm import assemble
from lm.cli.overrides import override
from lm.experiment import Experiment
from lm.plan.hardware import Slice
from lm.plan.question import Change, Question, Rebuild
from lm.plan.topology import devices_for


class Asking:
    """Makes questions of experiments; devices are described once."""

    def __init__(self) -> None:
        self.known: dict[Slice, Sequence[Any]] = {}

    def devices(self, asked: Slice) -> Sequence[Any]:
        """The devices of a slice."""
        if asked not in self.known:
            self.known[asked] = devices_for(asked)
        return self.known[asked]

    def question(self, experiment: Experiment, asked: Slice) -> Question:
        """What is to be compiled for a slice.

        Raises:
            UserError: the experiment does not fit the slice's devices.
        """
        devices = self.devices(asked)
        e = on_slices(experiment, asked)
        program = assemble.program(e, devices)
        flops = assemble.flops_per_token(e, program.placed)
        return Question(
            name=e.name,
            program=program,
            training=e.training,
            execution=e.execution,
            mesh=e.parallel.mesh,
            optimizer=e.optimizer,
            flops=flops,
            asked=asked,
        )

    def rebuild(self, experiment: Experiment, asked: Slice) -> Rebuild:
        """Makes the question with a change."""

        def changed(change: Change) -> Question:
            words = [w for name, value in change.settings for w in (f"--{name}", *value.split())]
            there = asked if change.slices is None else asked._replace(slices=change.slices)
            return self.question(override(experiment, words), there)

        return changed


def on_slices(experiment: Experiment, asked: Slice) -> Experiment:
    """The experiment on as many slices as are asked for."""
    parallel = experiment.parallel
    if asked.slices == parallel.mesh.slices or asked.chip is None:
        return experiment
    mesh = replace(parallel.mesh, slices=asked.slices)
    return replace(experiment, parallel=replace(parallel, mesh=mesh))
