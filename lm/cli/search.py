"""``lm plan --search``: the fastest way to run a config on a slice, remembered by content."""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lm.cli.asking import Asking
from lm.cli.output import write_json
from lm.config import to_plain
from lm.errors import ConfigError, UserError
from lm.experiment import Experiment
from lm.parallel.mesh import Mesh
from lm.plan.analytic import Subject
from lm.plan.cache import Cache, default_folder, key_of
from lm.plan.hardware import Slice
from lm.plan.memory import shards
from lm.plan.planning import plan
from lm.plan.question import Question
from lm.plan.ranking import advice, table, to_json
from lm.plan.report import page
from lm.plan.report import to_json as plan_json
from lm.plan.search import Figures, Found, Limits, laid_out, search, traced
from lm.plan.settings import Keeping, Setting, keepings, meshes, settings
from lm.track.format import duration

COMPILES, MINUTES = 8, 9.0
Say = Callable[[str], None]


def run(
    arguments: argparse.Namespace, experiment: Experiment, asked: Slice, asking: Asking, say: Say
) -> tuple[bool, list[str], dict[str, Any]]:
    """Search, or remember; writes the config.

    Returns:
        Whether something fits, the table and the plan as lines, and the figures.
    """
    limits = Limits(arguments.compiles or COMPILES, 60 * (arguments.minutes or MINUTES))
    cache = Cache(None if arguments.no_cache else default_folder())
    began = time.monotonic()
    key = key_of(to_plain(experiment), asked, limits=limits, any_batch=arguments.any_batch)
    entry = cache.get(key)
    known = entry is not None and {"lines", "figures", "config"} <= entry.keys()
    if entry is None or not known:
        entry = _searched(experiment, asked, asking, cache, limits, arguments.any_batch, say)
        cache.put(key, entry)
    lines, figures, config = list(entry["lines"]), dict(entry["figures"]), entry["config"]
    if known:
        lines.append(f"remembered in {duration(time.monotonic() - began)}; --no-cache plans again")
    if arguments.write is not None and config is not None:
        write_json(arguments.write, {**config, "name": experiment.name}, "--write")
        lines.append(f"written    {arguments.write}: lm train {arguments.write}")
    figures |= {"name": experiment.name, "search": {**figures["search"], "remembered": known}}
    return bool(figures["fits"]), lines, figures


def with_setting(experiment: Experiment, setting: Setting) -> Experiment:
    """The experiment run so."""
    e, s = experiment, setting
    return replace(
        e,
        parallel=replace(e.parallel, mesh=s.mesh),
        execution=replace(e.execution, remat=s.keeping.remat, save=s.keeping.save),
        training=replace(e.training, microbatches=s.microbatches, sequences=s.sequences),
    )


def setting_of(experiment: Experiment, devices: int) -> Setting | None:
    """How the experiment itself would be run on so many devices; None where it cannot."""
    mesh, x, t = experiment.parallel.mesh, experiment.execution, experiment.training
    fixed = [n for n in _sizes(mesh) if n != -1]
    taken = math.prod(fixed)
    names = ("data", "fsdp", "context", "tensor")
    free = {name: devices // taken for name in names if getattr(mesh, name) == -1}
    if devices % taken or mesh.slices == -1:
        return None
    whole = replace(mesh, **free)
    return Setting(whole, Keeping(x.remat, x.save), t.microbatches, t.sequences)


def _searched(
    experiment: Experiment,
    asked: Slice,
    asking: Asking,
    cache: Cache,
    limits: Limits,
    any_batch: bool,  # noqa: FBT001
    say: Say,
) -> dict[str, Any]:
    """The entry of a whole search: lines, figures, and the config that won."""
    chip = asked.chip
    if chip is None:
        raise ConfigError("--search: no figures are published for a processor.")
    own = setting_of(experiment, len(asking.devices(asked)))

    def ask(setting: Setting) -> Question:
        return asking.question(with_setting(experiment, setting), asked)

    def measure(setting: Setting) -> Figures:
        e = with_setting(experiment, setting)
        key = key_of(to_plain(e), asked)
        entry = cache.get(key)
        spent = 0.0
        if entry is None or not {"plan", "page"} <= entry.keys():
            began = time.monotonic()
            made = plan(asking.question(e, asked), asking.rebuild(e, asked), changes=False)
            spent = time.monotonic() - began
            entry = {"plan": plan_json(made), "page": list(page(made)), "settings": setting.values}
            cache.put(key, entry)
        return Figures(entry["plan"], entry["page"], spent)

    base, question = _base(experiment, own, len(asking.devices(asked)), ask)
    held = shards(question.program)
    subject = Subject(
        model=experiment.model,
        leaves=question.program.placed.model.leaves,
        shapes=question.program.placed.params,
        rules=experiment.parallel.rules,
        training=experiment.training,
        execution=experiment.execution,
        flops=question.flops,
        chip=chip,
        devices=asking.devices(asked),
        moments=held.optimizer / held.parameters,
    )
    ways = traced(experiment.execution, base, ask)
    laid = laid_out(subject, base.mesh)
    found = search(subject, laid, ways, measure, limits, say, any_batch=any_batch)
    return _entry(experiment, found, own, asked)


def _base(
    experiment: Experiment, own: Setting | None, devices: int, ask: Callable[[Setting], Question]
) -> tuple[Setting, Question]:
    """A setting that can be built, the experiment's own if it can: to trace in.

    Raises:
        UserError: none can.
    """
    e, kept = experiment, keepings(experiment.execution)[:1]
    each = devices // e.parallel.mesh.slices
    others = settings(list(meshes(e.parallel.mesh, each, e.training)), kept, e.training)
    first: UserError | None = None
    for setting in (*([own] if own else []), *others):
        try:
            return setting, ask(setting)
        except UserError as error:
            first = first or error
    raise first or ConfigError(
        f"training.sequences: {e.training.sequences} rows of {e.training.length} tokens cannot be "
        f"shared by {devices} devices on any mesh. Take a smaller slice, or more sequences."
    )


def _entry(
    experiment: Experiment, found: Found, own: Setting | None, asked: Slice
) -> dict[str, Any]:
    """What is remembered of a search: lines, figures, and the config that won."""
    best = found.best
    nearest = next((c for c in found.candidates if c.figures is not None), None)
    shown = best or nearest
    lines = [*table(found, own)]
    if best is not None and best.figures is not None:
        lines += ["", *best.figures.page]
    else:
        lines += [*advice(found, asked)]
    plan_of = dict(shown.figures.plan) if shown and shown.figures else {"fits": False}
    config = to_plain(with_setting(experiment, best.setting)) if best else None
    return {
        "lines": lines,
        "figures": {**plan_of, **to_json(found, own), "best": plan_of if best else None},
        "config": config,
    }


def _sizes(mesh: Mesh) -> tuple[int, ...]:
    return mesh.slices, mesh.data, mesh.fsdp, mesh.context, mesh.expert, mesh.tensor
