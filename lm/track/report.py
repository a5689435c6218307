"""``report.html``: what a run was and how it went, in one page that loads nothing."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import CheckpointError, ResourceError
from lm.track.charts import PALETTE, Chart, Curve, draw, table
from lm.track.curves import Series
from lm.track.format import count, duration, gib, grouped, percent
from lm.track.goodput import LIVES, account, read_lives
from lm.track.jsonl import read
from lm.track.page import SCRIPT, STYLE

PART_COLOURS = ("c2", "c4", "c3", "c5", "c0", "c1", "soft")
"""Of the parts of goodput, in their order; of the page's style."""


class Facts(NamedTuple):
    """All that a run's folder tells."""

    name: str
    metrics: list[dict[str, Any]]
    experiment: Mapping[str, Any]
    record: Mapping[str, Any]
    """Of the newest checkpoint: commit, versions, devices."""
    summary: Mapping[str, Any]
    samples: list[Mapping[str, Any]]
    goodput: Mapping[str, float]
    """Seconds by part, as ``lm.track.goodput`` has them."""

    @property
    def last_step(self) -> int:
        """The last step told of; 0 before the first."""
        return max((entry["step"] for entry in self.metrics), default=0)


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run's folder from what stands there, and return its path.

    Read are ``metrics.jsonl``, ``experiment.json``, the newest checkpoint's ``record.json``,
    ``summary.json`` (figures of the whole run), ``samples.json`` (``[{prompt, text}]``) and
    ``lives.jsonl``; any may be missing, or unreadable, and what it would have told is left out.

    Raises:
        CheckpointError: there is no such folder.
        ResourceError: the page cannot be written.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run. Give the folder of a run, as runs/NAME.")
    page, target = render(gather(run)), run / "report.html"
    temporary = run / "report.html.tmp"
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise ResourceError(
            f"{target}: cannot be written ({error.strerror or error}). Free some disk, or make "
            "the folder writable."
        ) from error
    return target


def gather(run: Path) -> Facts:
    """Read what a run's folder tells."""
    steps = [p for p in run.glob("checkpoints/*/record.json") if p.parent.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.parent.name), default=None)
    samples = _load(run / "samples.json", list)
    return Facts(
        name=run.resolve().name,
        metrics=read(run / "metrics.jsonl"),
        experiment=_load(run / "experiment.json", dict),
        record=_load(newest, dict) if newest else {},
        summary=_load(run / "summary.json", dict),
        samples=[sample for sample in samples if isinstance(sample, dict)],
        goodput=account(read_lives(run / LIVES)).parts,
    )


def render(facts: Facts) -> str:
    """The page."""
    charts = [draw(chart, facts.last_step) for chart in charts_of(facts.metrics)]
    values = table(list(_all_series(facts.metrics)))
    lost = sum(
        isinstance(value, float) and not math.isfinite(value)
        for entry in facts.metrics
        for value in entry.values()
    )
    note = f"<p class=sub>{lost} values were not finite and are not drawn.</p>" if lost else ""
    experiment = json.dumps(facts.experiment, indent=2, ensure_ascii=False)
    parts = [
        f"<h1>{escape(str(facts.experiment.get('name', facts.name)))}</h1>",
        f"<p class=sub>{escape(_subtitle(facts))}</p>",
        _tiles(headline(facts)),
        "<h2>Curves</h2><p class=sub>Faint: every value. Strong: the moving average.</p>"
        f"<div class=charts>{''.join(charts)}</div>{note}",
        _fold("Table of values", f"<div class=scroll>{values}</div>") if values else "",
        _goodput(facts.goodput),
        _samples(facts.samples),
        "<h2>How it was made</h2>" + _facts_table(facts),
        _fold("The whole experiment", f"<pre>{escape(experiment)}</pre>")
        if facts.experiment
        else "",
    ]
    title = escape(f"{facts.name}: report")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(part for part in parts if part)
        + f"<script>{SCRIPT}</script></body></html>\n"
    )


def charts_of(metrics: list[dict[str, Any]]) -> list[Chart]:
    """Loss, learning rate, gradient norm, speed and waiting, over steps."""
    held_out = [
        Curve(series_of(metrics, f"eval/{name}/loss", name=_words(name)), 1 + i % (PALETTE - 1))
        for i, name in enumerate(_evaluations(metrics))
    ]

    def noisy(name: str, shown: str, colour: int = 0) -> Curve:
        return Curve(series_of(metrics, name, name=shown), colour, smoothed=True)

    loss = (noisy("train/loss", "train"), *held_out)
    rate = (Curve(series_of(metrics, "train/learning_rate", name="learning rate"), 0),)
    norm = (noisy("train/gradient_norm", "gradient norm"),)
    speed = (noisy("throughput/tokens_per_second", "tokens/s", 2),)
    time = (
        noisy("time/step_seconds", "step", 2),
        noisy("data/wait_seconds", "of it waiting for data", 3),
    )
    return [
        Chart("Loss", "nats a token", loss, log=True),
        Chart("Learning rate", "", rate, from_zero=True),
        Chart("Gradient norm", "before clipping", norm, log=True),
        Chart("Speed", "tokens a second", speed, from_zero=True),
        Chart("Time", "seconds a step", time, from_zero=True),
    ]


def series_of(metrics: list[dict[str, Any]], metric: str, *, name: str) -> Series:
    """The finite values of one metric; of a step told twice, the later."""
    found = {
        entry["step"]: float(entry[metric])
        for entry in metrics
        if isinstance(entry.get(metric), (int, float)) and math.isfinite(entry[metric])
    }
    steps = sorted(found)
    return Series(name, np.array(steps, float), np.array([found[s] for s in steps], float))


def headline(facts: Facts) -> list[tuple[str, str, str]]:
    """The figures on top, as (what, value, remark)."""
    tiles = [*_held_out_tiles(facts.metrics)]
    train = series_of(facts.metrics, "train/loss", name="train")
    if len(train.y):
        window = max(1, len(train.y) // 50)
        tiles.append(("Training loss", f"{train.y[-window:].mean():.4f}", f"last {window} values"))
    parameters = facts.summary.get("parameters", facts.record.get("parameters"))
    if isinstance(parameters, int):
        tiles.append(("Parameters", count(parameters), grouped(parameters)))
    tokens = facts.summary.get("tokens", facts.record.get("tokens"))
    steps = facts.last_step
    if isinstance(tokens, int):
        tiles.append(("Tokens", count(tokens), f"in {grouped(steps)} steps"))
    elif steps:
        tiles.append(("Steps", grouped(steps), ""))
    speed = series_of(facts.metrics, "throughput/tokens_per_second", name="tokens/s")
    if len(speed.y):
        tiles.append(("Tokens a second", count(float(np.median(speed.y))), "median step"))
    tiles += _mfu_tiles(facts.metrics)
    seconds = facts.summary.get("seconds")
    if isinstance(seconds, (int, float)):
        tiles.append(("Time", duration(seconds), "of training"))
    else:
        took = series_of(facts.metrics, "time/step_seconds", name="seconds")
        if len(took.y):  # a line may stand for several steps
            total = float(np.sum(took.y * np.diff(took.x, prepend=0.0)))
            tiles.append(("Time", duration(total), "in training steps"))
    memory = series_of(facts.metrics, "memory/peak_gib", name="memory")
    if len(memory.y):
        tiles.append(("Peak memory", gib(float(memory.y.max())), "a device"))
    return tiles


def _held_out_tiles(metrics: list[dict[str, Any]]) -> Iterable[tuple[str, str, str]]:
    """The best held-out results; of each set, those of the step with the lowest loss."""
    names = _evaluations(metrics)
    for name in names:
        losses = series_of(metrics, f"eval/{name}/loss", name=name)
        if not len(losses.y):
            continue
        step = int(losses.x[losses.y.argmin()])
        remark = f"best, step {grouped(step)}" if len(losses.y) > 1 else f"step {grouped(step)}"
        of = f" · {_words(name)}" if len(names) > 1 else ""
        for measure, shown in (
            ("bits_per_byte", "Bits per byte"),
            ("perplexity", "Perplexity"),
            ("loss", "Held-out loss"),
        ):
            values = series_of(metrics, f"eval/{name}/{measure}", name=name)
            at = dict(zip(values.x, values.y, strict=True)).get(step)
            if at is not None:
                yield shown + of, f"{at:.4g}", remark


def _mfu_tiles(metrics: list[dict[str, Any]]) -> Iterable[tuple[str, str, str]]:
    for kind, remark in (("causal", "causal attention FLOPs"), ("full", "full attention FLOPs")):
        used = series_of(metrics, f"throughput/mfu_{kind}", name=kind)
        if len(used.y):
            yield f"MFU, {kind}", percent(float(np.median(used.y))), remark


def _evaluations(metrics: list[dict[str, Any]]) -> list[str]:
    names = {
        key.removeprefix("eval/").removesuffix("/loss"): None
        for entry in metrics
        for key in entry
        if key.startswith("eval/") and key.endswith("/loss")
    }
    return list(names)


def _all_series(metrics: list[dict[str, Any]]) -> Iterable[Series]:
    """Sparse series first, so that none of their steps is left out of the table."""
    names = {key: None for entry in metrics for key in entry if key != "step"}
    names = [name for name in names if not name.startswith("goodput/")]  # has a table of its own
    for name in sorted(names, key=lambda key: not key.startswith("eval/")):
        yield series_of(metrics, name, name=name)


def _subtitle(facts: Facts) -> str:
    told = [
        f"{facts.experiment['model'].get('kind')}"
        if isinstance(facts.experiment.get("model"), dict)
        else "",
        str(facts.record.get("devices", "")),
        str(facts.record.get("time", "")).replace("T", " ").replace("+00:00", " UTC"),
    ]
    return " · ".join(part for part in told if part and part != "None")


def _tiles(tiles: list[tuple[str, str, str]]) -> str:
    if not tiles:
        return "<p class=none>Nothing has been measured yet.</p>"
    cells = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for what, value, remark in tiles
    )
    return f"<dl class=tiles>{cells}</dl>"


def _goodput(parts: Mapping[str, float]) -> str:
    """Where the time went: one bar, and the figures below it."""
    whole = sum(parts.values())
    if whole <= 0:
        return ""
    bar = rows = ""
    for (part, seconds), colour in zip(parts.items(), PART_COLOURS, strict=True):
        share = 100 * max(0.0, seconds) / whole
        swatch = f"background:var(--{colour})"
        bar += f'<i style="width:{share:.3f}%;{swatch}"></i>'
        rows += (
            f'<tr><td><i style="{swatch}"></i>{_words(part)}</td><td>{duration(seconds)}</td>'
            f"<td>{share:.1f} %</td></tr>"
        )
    return (
        "<h2>Where the time went</h2>"
        f"<p class=sub>{duration(whole)} in all, from the first start on, restarts included.</p>"
        f"<div class=parts>{bar}</div><table class=parts>{rows}</table>"
    )


def _samples(samples: list[Mapping[str, Any]]) -> str:
    if not samples:
        return ""
    shown = ""
    for sample in samples:
        prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
        body = f"<b>{escape(prompt)}</b>{escape(text.removeprefix(prompt))}"
        shown += f"<div class=sample><pre>{body}</pre></div>"
    return (
        "<h2>Samples</h2><p class=sub>The prompt stands in colour.</p>"
        f"<div class=samples>{shown}</div>"
    )


def _facts_table(facts: Facts) -> str:
    versions = facts.record.get("versions")
    told = {
        "Run": facts.name,
        "Commit": facts.record.get("commit"),
        "Devices": facts.record.get("devices"),
        "Processes": facts.record.get("processes"),
        "Python": facts.record.get("python"),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions.items())
        if isinstance(versions, dict)
        else None,
        "Command": " ".join(map(str, facts.record.get("argv") or [])),
    }
    told |= {
        name.replace("_", " ").capitalize(): value
        for name, value in facts.summary.items()
        if isinstance(value, (str, int, float, bool)) and name != "run"
    }
    rows = "".join(
        f"<tr><th>{escape(what)}</th><td>{escape(str(value))}</td></tr>"
        for what, value in told.items()
        if value not in (None, "")
    )
    return f"<div class=scroll><table class=facts>{rows}</table></div>"


def _fold(title: str, inner: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _load(path: Path, kind: type) -> Any:
    """The JSON value of a file, or an empty one where there is none of that kind."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()
