"""All that the doctor looks at, in its order."""

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import assemble
from lm.config import to_plain
from lm.doctor import collectives, devices, loading, machine, storage, versions
from lm.doctor.check import Check, Part, Patience, SkippedError, examine
from lm.doctor.exchange import Exchange, between_all
from lm.experiment import Experiment
from lm.parallel import distributed
from lm.parallel.mesh import AXES, Mesh, describe, make_mesh
from lm.parallel.place import own_rows
from lm.train.program import Program

LAST_WORD = 5.0
"""Seconds to wait for each other at the end."""
SECONDS = 30.0
"""As long does it take at most, unless more is given; work that hangs may take a little more."""


class Asked(NamedTuple):
    """What to look at."""

    experiment: Experiment | None
    runs: Path
    data: Path | None = None
    """Shards to load instead of the experiment's."""
    seconds: float = SECONDS


class Findings(NamedTuple):
    """The end of an examination."""

    checks: list[Check]
    """On process 0; elsewhere none."""
    ok: bool
    """The same on all processes."""
    speaks: bool
    """Whether this process tells what was found."""
    processes: int
    hangs: bool
    """Whether a thread of some process hangs, or some process is gone: then Python's own way out,
    on which JAX waits for all of them, does not end."""


def look(asked: Asked) -> Findings:
    """Join the other processes, look at everything, and leave no trace."""
    patience = Patience(asked.seconds)
    joining = Part(
        name="processes",
        # One that is gone is to be told of, not the end of the others.
        measure=functools.partial(distributed.start, watch=False),
        judge=lambda told: [],
        seconds=asked.seconds,
        mend="Start the same command on every host at once, each able to reach the first one's "
        "port; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID must agree.",
    )
    checks = examine([joining], Exchange(), patience)
    if any(check.status == "WRONG" for check in checks):
        case = Case(asked, Exchange(), patience, joined=False)
    else:
        case = Case(asked, between_all(), Patience(asked.seconds), joined=True)
    try:
        checks += examine(case.parts(), case.exchange, case.patience)
    except BaseException:  # Ctrl-C, SIGTERM
        _tidy(case, case.scratch.close, case.scratch.leave)
        raise
    _tidy(case, case.scratch.close)
    exchange, hangs = case.exchange, bool(patience.stuck or case.patience.stuck)
    every = exchange.gather("hangs", hangs, LAST_WORD)
    verdict = (
        all(check.status != "WRONG" for check in checks),
        any(told is not False for told in every.values()),
    )
    ok, hangs = exchange.announce("verdict", verdict, asked.seconds) or (False, True)
    _tidy(case, case.scratch.leave)  # all have taken their files away, or nobody can
    # Nobody ends before all have heard: the first one's end would be taken for a failure.
    exchange.gather("heard", value=True, seconds=LAST_WORD)
    return Findings(checks, ok, exchange.rank == 0, exchange.count, hangs)


def _tidy(case: "Case", *works: Callable[[], None]) -> None:
    """Do what leaves no trace, unless the storage hangs."""
    for work in works:
        with contextlib.suppress(Exception):  # what hangs was told of already
            case.patience.run("tidying up", work, LAST_WORD)


class Case:
    """What was found so far, for those parts that build on it."""

    def __init__(
        self, asked: Asked, exchange: Exchange, patience: Patience, *, joined: bool
    ) -> None:
        """Nothing is looked at yet."""
        self.asked, self.exchange, self.patience = asked, exchange, patience
        self.joined = joined
        self.scratch = storage.Scratch(asked.runs)
        self.devices: list[Any] | None = None
        self.mesh: jax.sharding.Mesh | None = None
        self.program: Program | None = None

    def parts(self) -> list[Part]:
        """What to look at, in order; each with its share of the time."""
        total, names = self.asked.seconds, self.exchange.names
        made = [
            Part(
                "versions",
                self._versions,
                self._judge_versions,
                total / 6,
                "Install lm anew: pip install -e . --constraint constraints.txt",
            ),
            Part(
                "devices",
                self._devices,
                lambda told: devices.judge(told, names),
                total * 2 / 3,
                "Look for another process that holds the chips (ps aux | grep python), or restart "
                "the host.",
            ),
            Part("mesh", self._mesh, self._judge_mesh, total / 3, "Report this line: a bug."),
            Part(
                "sums",
                self._collectives,
                lambda told: collectives.judge(told, names),
                total / 2,
                "A chip, link or firewall keeps the hosts apart: leave one host after another out "
                "and ask again; --seconds gives a slow first compile more time.",
            ),
            Part(
                "host",
                machine.facts,
                lambda told: machine.judge(told, names, self._platform),
                total / 6,
                "Restart that host.",
            ),
            Part(
                "storage",
                self._storage,
                lambda told: storage.judge(told, names),
                total / 3,
                f"{self.asked.runs} hangs: look at its mount (dmesg), or keep runs elsewhere with "
                "--runs DIR",
            ),
            Part(
                "loader",
                self._loader,
                lambda told: loading.judge(told, names),
                total / 3,
                "The data's storage hangs or an objective fails: look at its mount, and at the "
                "line.",
            ),
        ]
        if self.exchange.count > 1:
            clocks = Part(
                "clocks",
                lambda: {str(r): list(pair) for r, pair in self.exchange.clocks(total / 6).items()},
                self._judge_clocks,
                total / 6,
                "Look at the network between that host and the first one.",
            )
            made.insert(4, clocks)
        return made

    @property
    def _platform(self) -> str:
        return self.devices[0].platform if self.devices else "unknown"

    def _versions(self) -> dict[str, Any]:
        given = self.asked.experiment
        if given is None:
            return versions.facts()
        text = json.dumps(to_plain(given), sort_keys=True)
        return versions.facts(hashlib.sha256(text.encode()).hexdigest())

    def _judge_versions(self, told: Mapping[int, Any]) -> Iterator[Check]:
        self.exchange.hosts.update({rank: t["host"] for rank, t in told.items()})
        return versions.judge(told, self.exchange.names)

    def _devices(self) -> dict[str, Any]:
        if not self.joined:
            raise SkippedError("the processes did not find each other")
        self.devices = list(jax.devices())
        return devices.facts(self.devices)

    def _mesh(self) -> dict[str, Any]:
        if not self.devices:
            raise SkippedError("no devices")
        everywhere = make_mesh(Mesh(fsdp=-1, slices=_slices(self.devices)), self.devices)
        self.mesh = everywhere
        given = self.asked.experiment
        if given is not None:
            self.program = assemble.program(given, self.devices)
            self.mesh = self.program.placed.mesh
        return {"said": describe(self.mesh), "axes": dict(self.mesh.shape)}

    def _judge_mesh(self, told: Mapping[int, Any]) -> Iterator[Check]:
        first = told[min(told)]
        given = self.asked.experiment
        of = "all devices on one axis" if given is None else f"of {given.name}"
        yield Check("mesh", "ok", f"{first['said']} ({of})", {"axes": first["axes"]})

    def _collectives(self) -> dict[str, Any]:
        if self.mesh is None:
            raise SkippedError("no devices")
        return collectives.facts(self.mesh, AXES, self.exchange, self.asked.seconds / 6)

    def _judge_clocks(self, told: Mapping[int, Any]) -> Iterator[Check]:
        offsets = {int(rank): (pair[0], pair[1]) for rank, pair in told[0].items()}
        return machine.judge_clocks(offsets, self.exchange.names)

    def _storage(self) -> dict[str, Any]:
        need = 0 if self.program is None else state_bytes(self.program)
        return storage.facts(self.scratch, self.exchange, need, self.asked.seconds / 4)

    def _loader(self) -> dict[str, Any]:
        rows: np.ndarray | None = None
        if self.program is not None:
            sharding: Any = self.program.batch.rows.sharding
            rows = own_rows(sharding, self.program.batch.rows.shape[0])
        given, seconds = self.asked.experiment, self.asked.seconds / 15
        return loading.facts(given, self.asked.data, rows, self.asked.runs, seconds)


def state_bytes(program: Program) -> int:
    """Bytes of a checkpoint's arrays, over all devices."""
    leaves = jax.tree.leaves(program.state)
    return sum(math.prod(x.shape) * _width(x.dtype) for x in leaves)


def _width(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def _slices(found: list[Any]) -> int:
    """How many TPU slices the devices are of."""
    return len({getattr(device, "slice_index", None) or 0 for device in found})
