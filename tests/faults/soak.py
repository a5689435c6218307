"""``make soak MINUTES=10 SEED=7``: runs that are disturbed at random until the time is up.

Every round draws its disturbances from ``SEED-ROUND``: processes are killed and frozen and disks
fail at phases and steps that are drawn, and between two attempts checkpoints rot.  At the end of
each round the run must be the undisturbed one: every bit where the mesh never changed; where it
did, the same batches and every loss within ``TOLERANCE``.  ``ROUND=3`` repeats one round.
"""

import argparse
import errno
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.end_to_end.conftest import digests
from tests.faults.battery import (
    Bench,
    Ended,
    assert_same,
    assert_same_so_far,
    batches,
    fired,
    losses,
    over,
)

STEPS, SAVE_EVERY, EVALUATE_EVERY, KEEP = 30, 2, 6, 4
TOLERANCE = 1e-4
"""Relative, of each loss, where the mesh changed on the way."""
OPTIONS = tuple(
    f"--training.steps {STEPS} --saving.every {SAVE_EVERY} --saving.keep {KEEP} "
    f"--evaluation.every {EVALUATE_EVERY}".split()
)
ANY = ("start", "claimed", "compile", "experiment_json", "restore", "restored")
EACH_STEP = ("data", "place", "step", "metrics", "metrics_torn")
AT_EVALUATIONS = ("evaluate", "evaluated")
IN_BACKGROUND = ("save_written", "save_tokenizer", "save_data", "save_commit", "save_digests")
AT_SAVES = (
    *IN_BACKGROUND,
    "save_begin",
    "metrics_flush",
    "save_folder",
    "save_copied",
    "renamed",
)
AFTER_SAVES = ("retire_begin", "retire_half", "retired")


@dataclass
class Round:
    """One run and what is done to it."""

    bench: Bench
    draw: random.Random
    name: str
    processes: int = 1
    done: list[str] = field(default_factory=list)

    @property
    def newest(self) -> int:
        return max(digests(self.bench.run(self.name)), default=0)

    def say(self, what: str) -> None:
        self.done.append(what)
        print(f"  {what}", flush=True)

    def a_place(self, lowest: int) -> str:
        """A phase at or after a step, with its step."""
        kind = self.draw.random()
        step = min(lowest + self.draw.randrange(5), STEPS)
        if kind < 0.1:
            return f"{self.draw.choice(ANY)}:"
        if kind < 0.35:
            return f"{self.draw.choice(EACH_STEP)}:{step}"
        if kind < 0.45:
            step = -(-step // EVALUATE_EVERY) * EVALUATE_EVERY
            return f"{self.draw.choice(AT_EVALUATIONS)}:{step}"
        step = -(-step // SAVE_EVERY) * SAVE_EVERY
        if kind < 0.85:
            return f"{self.draw.choice(AT_SAVES)}:{step}"
        return f"{self.draw.choice(AFTER_SAVES)}:{max(step - KEEP * SAVE_EVERY, SAVE_EVERY)}"

    def a_fault(self, lowest: int) -> str:
        """A fault at or after a step."""
        kind = self.draw.random()
        rank = self.draw.randrange(self.processes)
        if kind < 0.15:
            name = self.draw.choice(("ENOSPC", "EIO", "EROFS"))
            step = -(-lowest // SAVE_EVERY) * SAVE_EVERY
            return f"{name}@{self.draw.choice(('save_folder', *IN_BACKGROUND))}:{step}:{rank}"
        if kind < 0.25:
            return f"slow=0.5@{self.a_place(lowest)}:{rank}"
        return f"{'stop' if kind < 0.45 else 'kill'}@{self.a_place(lowest)}:{rank}"

    def attempt(self) -> bool:
        """Go on under one fault, or two; whether the run is over."""
        faults = [self.a_fault(self.newest + 1) for _ in range(self.draw.randint(1, 2))]
        before = len(fired(self.bench.notes(self.name)))
        ended = over(self.bench.start(self.name, ",".join(faults), processes=self.processes))
        struck = fired(self.bench.notes(self.name))[before:]
        codes = [end.code for end in ended]
        self.say(f"{', '.join(faults)}: {len(struck)} struck, ended {codes}, newest {self.newest}")
        check_ends(ended, struck)
        return codes == [0] * self.processes

    def rot(self) -> None:
        """Damage one or two of the newest checkpoints, and leave the others."""
        whole = sorted(digests(self.bench.run(self.name)), reverse=True)
        for step in whole[: min(self.draw.randint(1, 2), len(whole) - 1)]:
            folder = self.bench.run(self.name) / "checkpoints" / str(step)
            file = self.draw.choice(sorted(p for p in folder.rglob("*") if p.stat().st_size > 0))
            damage = self.draw.choice((flip, cut, lose))
            if file.is_file():
                told = file.relative_to(folder.parent)
                self.say(f"{damage.__name__} {told}: {damage(file, self.draw)}")

    def finish(self, whole: str) -> None:
        """Go on to the end, undisturbed; it must be as if nothing had been."""
        self.bench.finish(self.name, processes=self.processes)
        assert_same(self.bench, self.name, whole)


def check_ends(ended: list[Ended], struck: list[str]) -> None:
    """Refuse an end that no fault explains."""
    for code, said in ended:
        expected = {0, -signal.SIGKILL} if struck else {0}
        if any(hasattr(errno, fault.split("@")[0]) for fault in struck) or len(ended) > 1:
            expected |= {1, 2, -signal.SIGABRT} if struck else set()
        assert code in expected, f"ended with {code} after {struck or 'nothing'}:\n{said}"


def flip(file: Path, draw: random.Random) -> str:
    raw = bytearray(file.read_bytes())
    bit = draw.randrange(len(raw) * 8)
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)
    return f"bit {bit}"


def cut(file: Path, draw: random.Random) -> str:
    raw = file.read_bytes()
    length = draw.randrange(len(raw))
    file.write_bytes(raw[:length])
    return f"to {length} of {len(raw)} bytes"


def lose(file: Path, _: random.Random) -> str:
    file.unlink()
    return "gone"


def disturbed(this: Round, whole: str) -> None:
    """Attempts on one mesh, one after the other, with rot between them."""
    for _ in range(this.draw.randint(4, 7)):
        if this.attempt():
            break
        assert_same_so_far(this.bench.run(this.name), this.bench.run(whole))
        if this.draw.random() < 0.5:
            this.rot()
    this.finish(whole)


def supervised(this: Round, whole: str) -> None:
    """One start under a supervisor, with several faults to come."""
    steps = sorted(this.draw.sample(range(2, STEPS), this.draw.randint(2, 4)))
    action = [this.draw.choice(("kill", "stop")) for _ in steps]
    ranks = [this.draw.randrange(this.processes) for _ in steps]
    faults = [f"{a}@step:{s}:{r}" for a, s, r in zip(action, steps, ranks, strict=True)]
    end = this.bench.supervise(this.name, ",".join(faults), processes=this.processes)
    struck = len(fired(this.bench.notes(this.name)))
    this.say(f"supervised {', '.join(faults)}: {struck} struck, ended {end.code}")
    assert end.code == 0, end.said
    assert struck == len(faults), end.said
    assert_same(this.bench, this.name, whole)


def elastic(this: Round, whole: str) -> None:
    """Another number of processes, or another mesh, at each attempt."""
    kept = this.bench
    for _ in range(this.draw.randint(3, 5)):
        this.processes = this.draw.choice((1, 1, 2, 4))
        devices = this.draw.choice((2, 4)) if this.processes == 1 else 4
        this.bench = replace(kept, devices=devices)
        this.say(f"{this.processes} processes, {devices} devices")
        if this.attempt():
            break
        if this.draw.random() < 0.5:
            this.rot()
    this.bench, this.processes = kept, 1
    this.bench.finish(this.name)
    assert batches(kept.notes(this.name)) == batches(kept.notes(whole))
    expected, found = losses(kept.run(whole)), losses(kept.run(this.name))
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    worst = max(abs(found[step] / expected[step] - 1) for step in expected)
    this.say(f"losses within {worst:.1e}")
    assert worst <= TOLERANCE, found


Kind = tuple[str, Callable[[Round, str], None], int, int]
KINDS: tuple[Kind, ...] = (
    ("one process, one device", disturbed, 1, 1),
    ("one process, four devices", disturbed, 1, 4),
    ("two processes, four devices", disturbed, 2, 4),
    ("two processes under a supervisor", supervised, 2, 4),
    ("changing processes and meshes", elastic, 1, 4),
)


def play(folder: Path, seed: int, number: int) -> int:
    """One round; how often it was disturbed."""
    draw = random.Random(f"{seed}-{number}")
    told, kind, processes, devices = KINDS[number % len(KINDS)]
    print(f"round {number} of seed {seed}: {told}", flush=True)
    layout = f"{devices}-{processes}"
    bench = Bench(
        folder=folder / layout,
        compiled=folder / "compiled",
        devices=devices,
        data_axis=2 if devices > 1 else 1,
        options=OPTIONS,
    )
    if not bench.run("whole").exists():
        bench.finish("whole", processes=processes, options=("--saving.keep", "1000"))
    this = Round(bench, draw, f"round-{number}", processes)
    kind(this, "whole")
    print(f"  as the undisturbed one, at {time.strftime('%H:%M:%S')}", flush=True)
    shutil.rmtree(bench.run(this.name))
    return len(this.done)


def main() -> int:
    """Play rounds until the time is up; 1 where one of them went wrong."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="drawn and told if it is not given")
    parser.add_argument("--round", type=int, default=None, help="play this one alone")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"soak: seed {seed}, {chosen.minutes:g} minutes, in {folder}", flush=True)
    end, done, number = time.monotonic() + 60 * chosen.minutes, 0, chosen.round or 0
    first = number
    while number == first or (chosen.round is None and time.monotonic() < end):
        try:
            done += play(folder, seed, number)
        except BaseException:
            print(f"soak: round {number} of seed {seed} went wrong; its runs are in {folder}. "
                  f"Repeat it alone: make soak SEED={seed} ROUND={number}")  # fmt: skip
            raise
        number += 1
    print(f"soak: seed {seed}: {number - first} rounds, {done} disturbances, nothing lost")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
