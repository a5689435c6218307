"""Line charts as HTML with inline SVG, sharp at any width.

Curves are drawn in a stretched SVG, whose lines keep their thickness; the numbers on the axes are
HTML beside it, so that they stay readable on a telephone.  Colours come from the page's style.
"""

import json
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from lm.track.curves import Axis, Series, axis_label, smooth, step_axis, thin, value_axis

POINTS = 600
"""About as many as a screen can show."""
DOTTED = 60
"""A curve of at most so many points shows them as dots."""
PALETTE = 6
"""Colours that the page's style defines."""


class Curve(NamedTuple):
    """A series with its looks."""

    series: Series
    colour: int
    smoothed: bool = False
    """Draw the values faintly and their moving average strongly."""


class Chart(NamedTuple):
    """One chart over steps."""

    title: str
    unit: str
    """What the value axis counts, in words."""
    curves: tuple[Curve, ...]
    from_zero: bool = False
    log: bool = False
    """Let the value axis be logarithmic where the values span much."""


def draw(chart: Chart, last_step: int) -> str:
    """The chart as a ``figure``; without a curve it says that there is nothing to show."""
    curves = [curve for curve in chart.curves if len(curve.series.x)]
    title = f"<figcaption><b>{escape(chart.title)}</b> <span>{escape(chart.unit)}</span>"
    if not curves:
        return f"<figure>{title}</figcaption><p class=none>No values yet.</p></figure>"
    values = np.concatenate([_seen(curve) for curve in curves])
    y = value_axis(values, from_zero=chart.from_zero, log=chart.log)
    x = step_axis(last_step)
    scale = " · logarithmic" if y.log else ""
    drawn = [_draw_curve(curve, x, y) for curve in curves]
    lines, shown = "".join(line for line, _ in drawn), [data for _, data in drawn]
    data = escape(json.dumps({"last": x.high, "low": y.low, "high": y.high, "log": y.log,
                              "curves": shown}), quote=True)  # fmt: skip
    entries = "".join(
        f'<li><i style="background:var(--c{c.colour})"></i>{escape(c.series.name)}</li>'
        for c in curves
    )
    legend = f"<ul class=legend>{entries}</ul>" if len(curves) > 1 else ""
    label = f"{chart.title} over steps; the values stand in the table below"
    return (
        f"<figure>{title[:-7]}{scale}</span>{legend}</figcaption>"
        f'<div class=chart data-chart="{data}">'
        f"<div class=ylabels>{_labels(y, 'bottom')}</div>"
        f'<div class=plot><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{_grid(y)}{lines}</svg>'
        "<div class=cursor hidden></div><div class=tip hidden></div></div>"
        f"<div class=xlabels>{_labels(x, 'left')}</div></div>"
        "<div class=xname>step</div></figure>"
    )


def _seen(curve: Curve) -> np.ndarray:
    """The values within what the axis must hold: a noisy curve's rare spikes are cut off.

    At least one value each way, for the first step takes as long as its compilation.
    """
    y = curve.series.y
    if not curve.smoothed or len(y) < 50:
        return y
    ranked, spikes = np.sort(y), max(1, len(y) // 500)
    return np.clip(y, ranked[spikes], ranked[-1 - spikes])


def _draw_curve(curve: Curve, x: Axis, y: Axis) -> tuple[str, dict[str, object]]:
    """SVG of the curve, and its points for the page's pointer."""
    series, colour = curve.series, f"var(--c{curve.colour})"
    parts: list[str] = []
    if curve.smoothed and len(series.x) >= 10:
        parts.append(_path(thin(series, POINTS), x, y, colour, "raw"))
        series = series._replace(y=smooth(_seen(curve), max(3, len(series.y) // 40)))
    series = thin(series, POINTS)
    parts.append(_path(series, x, y, colour, "line"))
    if not curve.smoothed and len(series.x) <= DOTTED:
        across, up = 1000 * x.place(series.x), 1000 * (1 - y.place(series.y))
        dots = " ".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(across, up, strict=True))
        parts.append(f'<path class=dots d="{dots}" stroke="{colour}"/>')
    points = [[float(a), float(f"{b:.5g}")] for a, b in zip(series.x, series.y, strict=True)]
    name = f"{series.name} (smoothed)" if curve.smoothed else series.name
    return "".join(parts), {"name": name, "colour": colour, "points": points}


def _path(series: Series, x: Axis, y: Axis, colour: str, kind: str) -> str:
    across, up = 1000 * x.place(series.x), 1000 * (1 - y.place(series.y))
    way = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(across, up, strict=True))
    return f'<path class={kind} d="M{way}" stroke="{colour}"/>'


def _grid(axis: Axis) -> str:
    heights = 1000 * (1 - axis.place(np.array([tick for tick, _ in axis.ticks])))
    return "".join(f'<path class=grid d="M0 {h:.1f}H1000"/>' for h in heights)


def _labels(axis: Axis, side: str) -> str:
    places = 100 * axis.place(np.array([tick for tick, _ in axis.ticks]))
    return "".join(
        f'<span style="{side}:{place:.2f}%">{escape(label)}</span>'
        for place, (_, label) in zip(places, axis.ticks, strict=True)
    )


def table(series: Sequence[Series], rows: int = 40) -> str:
    """The values of all series at about ``rows`` steps, those of sparse series among them."""
    series = [s for s in series if len(s.x)]
    if not series:
        return ""
    steps: set[float] = set()
    for one in series:
        index = np.linspace(0, len(one.x) - 1, min(rows, len(one.x))).round().astype(int)
        chosen = {float(v) for v in one.x[index]}
        steps |= chosen if len(steps) + len(chosen) <= 2 * rows else set()
    found = [dict(zip(map(float, s.x), map(float, s.y), strict=True)) for s in series]
    head = "".join(f"<th>{escape(s.name)}</th>" for s in series)
    body = "".join(
        f"<tr><td>{step:.0f}</td>{''.join(f'<td>{_cell(f.get(step))}</td>' for f in found)}</tr>"
        for step in sorted(steps)
    )
    return f"<table><thead><tr><th>step</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return axis_label(value) if abs(value) >= 1e4 or 0 < abs(value) < 0.01 else f"{value:.4f}"
