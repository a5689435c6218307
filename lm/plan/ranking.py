"""What a search found, as a table and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.plan.hardware import Slice
from lm.plan.search import Candidate, Found, words
from lm.plan.settings import Setting
from lm.track.format import duration, percent

GUESSES = 6
"""Guessed settings that the table shows."""
MOST = 100
"""Candidates that the JSON holds."""
HEADS = (
    "rank", "mesh", "keeps", "microbatches", "rows a device", "peak GiB", "step", "MFU", "blocking",
    "",
)  # fmt: skip
LEFT = (1, 2, 9)
"""Columns whose words begin at the same place."""


def table(found: Found, own: Setting | None) -> Iterator[str]:
    """The candidates as lines for a person, the best first.

    Args:
        found: of a search.
        own: the setting of the config, which is marked.
    """
    rows = [HEADS, *(_cells(n, c, own) for n, c in _shown(found.candidates, own))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    yield (
        f"search     {found.settings} settings, {found.hopeless} thought too large for memory; "
        f"{len(found.compiled)} compiled in {duration(found.seconds)}: {found.ended}"
    )
    for row in rows:
        cells = (
            cell.ljust(width) if i in LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def advice(found: Found, asked: Slice) -> Iterator[str]:
    """Where nothing fits: what comes nearest, what it lacks, and what would help."""
    nearest = next((c for c in found.candidates if c.figures is not None), None)
    if nearest is None or nearest.figures is None:
        yield "nearest    none could be compiled; lm plan without --search says why"
        return
    plan, s = nearest.figures.plan, nearest.setting
    h = plan["hbm_gib"]
    states = h["parameters"] + h["optimizer"] + h["gradients"]
    yield (
        f"nearest    {words(s.mesh)}; {s.keeping.words}; {s.microbatches} microbatches: "
        f"{h['peak']:.2f} GiB a device, {plan['short_gib']:.2f} more than the {h['limit']:.2f} "
        "there are"
    )
    if states > h["limit"] / 2:
        yield (
            f"           {states:.2f} GiB of it are weights, optimizer and gradients, which only "
            "more chips in the slice make smaller (fsdp), or a smaller model"
        )
    elif s.rows() > 1:
        yield (
            f"           it has {s.rows():g} rows a device: --slices {2 * asked.slices}, a larger "
            "slice or fewer --training.sequences halve what grows with them"
        )
    else:
        yield (
            "           no device has more than a row: a larger slice with more context or tensor, "
            "a shorter --training.length or a smaller model would help"
        )


def to_json(found: Found, own: Setting | None) -> dict[str, Any]:
    """The search as figures: ``search`` and ``candidates``."""
    return {
        "search": {
            "settings": found.settings,
            "too_large": found.hopeless,
            "compiled": len(found.compiled),
            "ended": found.ended,
            "seconds": found.seconds,
        },
        "candidates": [_row(n, c, own) for n, c in enumerate(found.candidates[:MOST], 1)],
    }


def _shown(candidates: Sequence[Candidate], own: Setting | None) -> Iterator[tuple[int, Candidate]]:
    """All that were compiled, the config's own, and the best of the guesses, one of each mesh."""
    guesses, seen = 0, set()
    for n, c in enumerate(candidates, 1):
        known = c.figures is not None or c.refused is not None
        if known or c.setting == own:
            yield n, c
        elif c.setting.mesh not in seen and guesses < GUESSES:
            guesses += 1
            yield n, c
        seen.add(c.setting.mesh)


def _cells(number: int, c: Candidate, own: Setting | None) -> tuple[str, ...]:
    s, row = c.setting, _row(number, c, own)
    step, mfu, blocking = row["step_seconds"], row["mfu_ceiling"], row["blocking_share"]
    state = row["state"] + (", as configured" if row["as_configured"] else "")
    guessed = "~" if c.figures is None else ""
    return (
        str(number),
        words(s.mesh),
        s.keeping.words,
        str(s.microbatches),
        f"{s.rows():g}",
        f"{guessed}{row['peak_gib']:.2f}",
        "-" if step is None else f"{guessed}{duration(step)}",
        "-" if mfu is None else f"{guessed}{percent(mfu)}",
        "-" if blocking is None else f"{guessed}{percent(blocking)}",
        state,
    )


def _row(number: int, c: Candidate, own: Setting | None) -> dict[str, Any]:
    s, bound = c.setting, c.guess.bound
    figures: Mapping[str, Any] = c.figures.plan if c.figures else {}
    measured = figures.get("bound_seconds", {}) if figures else bound._asdict()
    step, blocking = measured.get("step"), measured.get("blocking")
    share = blocking / step if step and blocking is not None else None
    return {
        "rank": number,
        "state": _state(c),
        "as_configured": s == own,
        "settings": s.values,
        "rows_per_device": s.rows(),
        "peak_gib": figures["hbm_gib"]["peak"] if figures else c.guess.peak_gib,
        "step_seconds": step,
        "token_seconds": c.figures.token_seconds if c.figures and step else c.token_seconds,
        "mfu_ceiling": figures["mfu_ceiling"] if figures else c.mfu,
        "blocking_share": share,
        "guess": {
            "peak_gib": c.guess.peak_gib,
            "token_seconds": c.token_seconds,
            "bound_seconds": bound._asdict(),
        },
    }


def _state(c: Candidate) -> str:
    if c.refused is not None:
        return "refused"
    if c.figures is None:
        return "not compiled"
    return "compiled" if c.figures.fits else "does not fit"
