"""A mesh seen from outside, and small runs to plan."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from lm import assemble
from lm.data.mixture import Mixture, Weighted
from lm.data.synthetic import Synthetic
from lm.experiment import Evaluation, Experiment
from lm.layers.execution import Execution
from lm.models.llama import llama
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.parallel.mesh import Mesh, Parallel
from lm.plan.analytic import Subject
from lm.plan.hardware import Chip, Slice
from lm.plan.memory import shards
from lm.plan.question import Change, Question
from lm.plan.roofline import Links
from lm.plan.settings import Setting
from lm.tokenizers.bytes import Bytes
from lm.train.step import Training


def fake_mesh(
    places: dict[str, int], torus: tuple[int, ...] = (), slices: int = 1, halves: int = 1
) -> Any:
    """A JAX mesh's shape and names over devices that have coordinates, row by row."""
    n = int(np.prod(list(places.values())))
    devices = np.empty(n, dtype=object)
    grid = (*torus, *(1,) * (3 - len(torus)))
    for i in range(n):
        chip, half = divmod(i % (n // slices), halves)
        where = np.unravel_index(chip, grid) if torus else (chip, 0, 0)
        devices[i] = SimpleNamespace(
            coords=tuple(map(int, where)), core_on_chip=half, slice_index=i // (n // slices)
        )
    shape = tuple(places.values())
    return SimpleNamespace(axis_names=tuple(places), shape=places, devices=devices.reshape(shape))


def experiment(*, blocks: int = 2, length: int = 64, **parts: Any) -> Experiment:
    """A small Llama on eight devices."""
    default = {
        "name": "small",
        "model": llama(64, width=32, blocks=blocks, num_heads=4, num_kv_heads=2, mlp=64),
        "tokenizer": Bytes(),
        "data": Mixture(sources=(Weighted(source=Synthetic(vocab_size=64)),)),
        "training": Training(steps=10, sequences=16, length=length),
        "optimizer": AdamW(schedule=Cosine(peak=1e-2, warmup=1)),
        "execution": Execution(scan="scan"),
        "evaluation": Evaluation(evaluators=()),
    }
    return Experiment(**{**default, **parts})


def on(mesh: Mesh) -> Parallel:
    return Parallel(mesh=mesh)


def ask(e: Experiment, chip: Chip | None = None) -> Question:
    """The question of a run on the eight virtual devices."""
    program = assemble.program(e, jax.devices())
    flops = assemble.flops_per_token(e, program.placed)
    asked = Slice(chip, (8,), 1)
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


def rebuilder(e: Experiment, chip: Chip | None = None) -> Callable[[Change], Question]:
    """Makes the changes that the tests need."""

    def rebuild(change: Change) -> Question:
        changed = e
        for name, value in change.settings:
            part, field = name.split(".")
            old = getattr(changed, part)
            kind = type(getattr(old, field))
            changed = replace(changed, **{part: replace(old, **{field: kind(value)})})
        return ask(changed, chip)

    return rebuild


def subject(e: Experiment, question: Question, chip: Chip) -> Subject:
    """What a search knows of a run on the eight virtual devices."""
    held = shards(question.program)
    return Subject(
        model=e.model,
        leaves=question.program.placed.model.leaves,
        shapes=question.program.placed.params,
        rules=e.parallel.rules,
        training=e.training,
        execution=e.execution,
        flops=question.flops,
        chip=chip,
        devices=jax.devices(),
        moments=held.optimizer / held.parameters,
    )


def asker(e: Experiment, chip: Chip | None = None) -> Callable[[Setting], Question]:
    """The question of a setting."""

    def of(s: Setting) -> Question:
        changed = replace(
            e,
            parallel=replace(e.parallel, mesh=s.mesh),
            execution=replace(e.execution, remat=s.keeping.remat, save=s.keeping.save),
            training=replace(e.training, microbatches=s.microbatches, sequences=s.sequences),
        )
        return ask(changed, chip)

    return of


@pytest.fixture
def wired(monkeypatch) -> float:
    """Processors have no links: every axis of the mesh sends a gigabyte a second."""
    rate = 1e9
    for name in ("analytic", "roofline"):
        monkeypatch.setattr(f"lm.plan.{name}.links", lambda *_: Links(rate, network=False))
    return rate


@pytest.fixture(scope="module")
def quickly() -> Iterator[None]:
    """Compile in a third of the time; what travels is the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """What the tests of this folder share."""
    return SimpleNamespace(
        fake_mesh=fake_mesh,
        experiment=experiment,
        on=on,
        ask=ask,
        asker=asker,
        rebuilder=rebuilder,
        subject=subject,
    )
