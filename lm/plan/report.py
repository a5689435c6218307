"""A plan, as one screen of text and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lm.models.flops import Flops
from lm.plan.changes import RematChoice, Tried
from lm.plan.collectives import Row
from lm.plan.hardware import SOURCE, Slice
from lm.plan.memory import Hbm
from lm.plan.roofline import Bound
from lm.track.format import count, duration, grouped, percent
from lm.train.step import Training

HOUR, DAY = 3_600, 86_400
SHOWN_ROWS = 12


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs of a slice, and the least time that it takes there."""

    name: str
    fits: bool
    hbm: Hbm
    remat: str
    """The choice that the run has made."""
    remat_table: Sequence[RematChoice]
    collectives: Sequence[Row] | None
    collectives_unknown: str | None
    """Why they are not known."""
    unknown_loops: int
    """Loops whose trip count is not told; their collectives count once."""
    unread: int
    """Collectives that the program's text holds where they were not understood; not counted."""
    flops: Flops
    """Of a token."""
    recomputed_flops: float
    """Of a step, by the traced products."""
    training: Training
    bound: Bound
    bound_unknown: str | None
    asked: Slice
    mesh: dict[str, list[int]]
    """Axis -> sizes of its parts."""
    compile_seconds: float
    trace_seconds: float
    changes: Sequence[Tried]
    """Where it does not fit: changes with which it was compiled and does."""
    tried: Sequence[Tried]
    versions: dict[str, str | None]

    @property
    def step_flops(self) -> float:
        """Of a step, attention counted causal."""
        return self.flops.causal * self.training.tokens_per_step

    @property
    def mfu_ceiling(self) -> float | None:
        """The MFU of a step that takes no longer than its bound, attention counted causal."""
        return self._mfu(self.flops.causal)

    @property
    def mfu_ceiling_full(self) -> float | None:
        """The same, every query counted with every key."""
        return self._mfu(self.flops.full)

    @property
    def seconds(self) -> float | None:
        """Of all steps at the bound."""
        return None if self.bound.step is None else self.bound.step * self.training.steps

    def _mfu(self, flops_per_token: float) -> float | None:
        chip = self.asked.chip
        if chip is None or self.bound.step is None:
            return None
        peak = chip.peak_flops * chip.devices_per_chip * self.asked.chips
        return flops_per_token * self.training.tokens_per_step / self.bound.step / peak


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as figures."""
    h, b, t = plan.hbm, plan.bound, plan.training
    seconds = plan.seconds
    return {
        "name": plan.name,
        "fits": plan.fits,
        "short_gib": h.short,
        "hbm_gib": h._asdict(),
        "remat": {"chosen": plan.remat, "traced": [c._asdict() for c in plan.remat_table]},
        "collectives": None if plan.collectives is None else [_row(r) for r in plan.collectives],
        "collectives_unknown": plan.collectives_unknown,
        "loops_of_unknown_length": plan.unknown_loops,
        "collectives_not_understood": plan.unread,
        "flops_per_step": plan.step_flops,
        "flops_per_step_full_attention": plan.flops.full * t.tokens_per_step,
        "recomputed_flops_per_step": plan.recomputed_flops,
        "bound_seconds": b._asdict(),
        "bound_unknown": plan.bound_unknown,
        "mfu_ceiling": plan.mfu_ceiling,
        "mfu_ceiling_full_attention": plan.mfu_ceiling_full,
        "tokens_per_step": t.tokens_per_step,
        "steps": t.steps,
        "tokens": t.tokens_per_step * t.steps,
        "days": None if seconds is None else seconds / DAY,
        "chip_hours": None if seconds is None else seconds / HOUR * plan.asked.chips,
        "compile_seconds": plan.compile_seconds,
        "trace_seconds": plan.trace_seconds,
        "mesh": plan.mesh,
        "topology": {
            "name": plan.asked.name,
            "slices": plan.asked.slices,
            "chips": plan.asked.chips,
            "figures": None if plan.asked.chip is None else SOURCE,
        },
        "changes": [_change(c) for c in plan.changes],
        "tried": [_change(c) for c in plan.tried],
        "versions": plan.versions,
    }


def page(plan: Plan) -> Iterator[str]:
    """The plan as lines for a person."""
    a, h, t = plan.asked, plan.hbm, plan.training
    slices = f"{a.slices} slices of " if a.slices > 1 else ""
    unit = "chips" if a.chip else "devices"
    made = ", ".join(f"{k} {v}" for k, v in plan.versions.items() if v and k in ("jax", "libtpu"))
    yield f"plan       {plan.name} on {slices}{a.name} ({grouped(a.chips)} {unit}), {made}"
    always = ("data", "fsdp", "tensor")
    axes = [
        f"{name} {' x '.join(map(str, parts))}"
        for name, parts in plan.mesh.items()
        if name in always or parts != [1]
    ]
    yield f"mesh       {', '.join(axes)}"
    yield from _memory_lines(plan)
    yield from _remat_lines(plan)
    yield from _collective_lines(plan)
    again = plan.recomputed_flops / plan.step_flops
    yield (
        f"flops      {count(plan.step_flops)} a step by the model's formula (causal attention); "
        f"{percent(again)} of that is computed again"
    )
    yield from _bound_lines(plan)
    tokens = t.tokens_per_step * t.steps
    run = f"{count(t.tokens_per_step)} tokens a step; {grouped(t.steps)} steps = {count(tokens)}"
    if plan.seconds is not None:
        hours = plan.seconds / HOUR * a.chips
        run += f": {duration(plan.seconds)} at the bound, {count(hours)} chip-hours"
    yield f"run        {run}"
    yield (
        f"compiled   in {plan.compile_seconds:.1f} s, traced and lowered in "
        f"{plan.trace_seconds:.1f} s"
    )
    if not plan.fits:
        yield from _change_lines(plan, h)


def _memory_lines(plan: Plan) -> Iterator[str]:
    h = plan.hbm
    if h.limit is None:
        yield f"memory     {size(h.peak)} a device at the peak; no limit is published for it"
    elif plan.fits:
        share = percent(h.peak / h.limit)
        yield f"memory     fits: {h.peak:.2f} of {h.limit:.2f} GiB a device at the peak ({share})"
    else:
        yield (
            f"memory     DOES NOT FIT: {h.peak:.2f} GiB a device at the peak, {h.short:.2f} more "
            f"than the {h.limit:.2f} there are"
        )
    parts = ("parameters", "optimizer", "gradients", "activations", "temporaries", "code")
    told = ", ".join(f"{name} {size(getattr(h, name))}" for name in parts)
    yield f"           {told}"


def _remat_lines(plan: Plan) -> Iterator[str]:
    for n, c in enumerate(plan.remat_table):
        head = "remat" if n == 0 else ""
        mark = "*" if c.remat == plan.remat else " "
        yield (
            f"{head:<10}{mark}{c.remat:<20} keeps {size(c.activations_gib):>9}, computes "
            f"{percent(c.recomputed_share):>5} again (traced)"
        )


def _collective_lines(plan: Plan) -> Iterator[str]:
    if plan.collectives is None:
        yield f"traffic    unknown: {plan.collectives_unknown}"
        return
    shown = plan.collectives[:SHOWN_ROWS]
    for n, r in enumerate(shown):
        head = "traffic" if n == 0 else ""
        how = "overlapped" if r.overlapped else "blocking"
        yield (
            f"{head:<10} {r.kind:<19} {'+'.join(r.axes):<14} {how:<10} "
            f"{r.count_per_step:>6} a step {size(r.wire_gib_per_step):>9} on the wire, "
            f"the largest of {size(r.largest_gib)}"
        )
    if not shown:
        yield "traffic    none"
    if len(plan.collectives) > len(shown):
        rest = plan.collectives[SHOWN_ROWS:]
        yield f"           {len(rest)} more, {size(sum(r.wire_gib_per_step for r in rest))}"
    if plan.unread:
        yield f"           {plan.unread} more collectives were not understood and are not counted"
    if plan.unknown_loops:
        yield (
            f"           {plan.unknown_loops} loops of unknown length hold collectives that are "
            "counted once here"
        )


def _bound_lines(plan: Plan) -> Iterator[str]:
    b = plan.bound
    if b.compute is None:
        yield f"bound      unknown: {plan.bound_unknown}"
        return
    named = {"compute": b.compute, "HBM": b.hbm, "ICI": b.ici, "DCN": b.dcn}
    told = ", ".join(f"{n} {duration(s) if s else 0}" for n, s in named.items() if s is not None)
    if b.step is None or b.blocking is None or plan.mfu_ceiling is None:
        yield f"bound      {told}; the step's: unknown, {plan.bound_unknown}"
        return
    yield (
        f"bound      {told} ({duration(b.blocking) if b.blocking else 'none'} of both blocking): "
        f"a step takes at least {duration(b.step)}"
    )
    full = plan.mfu_ceiling_full or 0.0
    yield (
        f"MFU        at most {percent(plan.mfu_ceiling)} counting causal attention, "
        f"{percent(full)} counting full; figures of the chip: Google Cloud's TPU pages"
    )


def _change_lines(plan: Plan, h: Hbm) -> Iterator[str]:
    if not plan.changes:
        yield (
            f"changes    none of {len(plan.tried)} that were compiled makes it fit; take more "
            "chips, a larger version or a smaller model"
        )
    for n, c in enumerate(plan.changes):
        head = "changes" if n == 0 else ""
        bound = "" if c.step_seconds is None else f", a step at least {duration(c.step_seconds)}"
        yield f"{head:<10} {c.change.words}: {c.peak_gib:.2f} GiB (compiled){bound}"


def size(gib: float) -> str:
    """A size in the unit that suits it: ``9.82 GiB``, ``3.1 MiB``."""
    for unit, least in (("GiB", 1.0), ("MiB", 2.0**-10), ("KiB", 2.0**-20)):
        if gib >= least:
            return f"{gib / least:.3g} {unit}" if gib / least < 100 else f"{gib / least:.0f} {unit}"
    return f"{gib * 2**30:.0f} B"


def _row(row: Row) -> dict[str, Any]:
    return row._asdict() | {"axes": list(row.axes)}


def _change(tried: Tried) -> dict[str, Any]:
    return {
        "words": tried.change.words,
        "settings": dict(tried.change.settings),
        "slices": tried.change.slices,
        "fits": tried.fits,
        "peak_gib": tried.peak_gib,
        "step_seconds": tried.step_seconds,
    }
