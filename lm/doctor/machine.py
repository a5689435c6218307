"""The hosts: load, memory, limits; and whether their clocks agree."""

import os
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.doctor.check import Check
from lm.track.format import duration

MOST_OFFSET = 1.0
"""Seconds by which clocks may differ: logs and files of several hosts are compared by time."""
LEAST_FILES = 1024
"""A checkpoint of many leaves and its data are open at once."""
LEAST_FREE = 0.1
"""Share of the memory that should be free."""
LEAST_SHM = 2**30
"""Bytes of /dev/shm where GPUs talk through it (NCCL); a container's default is 64 MiB."""
HUGE_PAGES = Path("sys/kernel/mm/transparent_hugepage/enabled")


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """This host as it is now."""
    memory = _memory(root / "proc/meminfo")
    shm = root / "dev/shm"
    pages = root / HUGE_PAGES
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "load": os.getloadavg()[0],
        "memory_bytes": memory.get("MemTotal"),
        "free_bytes": memory.get("MemAvailable"),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "shm_bytes": shutil.disk_usage(shm).total if shm.is_dir() else None,
        "huge_pages": _chosen(pages.read_text()) if pages.is_file() else None,
    }


def judge(
    told: Mapping[int, Any], names: Callable[[Iterable[int]], str], platform: str
) -> Iterator[Check]:
    """One line for all hosts: the figures of the one that is worst off, and what to mend."""
    problems = {rank: p for rank, t in told.items() if (p := _problem(t, platform))}
    shown = min(problems or told)
    t = told[shown]
    free, total = t["free_bytes"], t["memory_bytes"]
    memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free" if free else "memory unknown"
    shm = f", /dev/shm {t['shm_bytes'] / 2**30:.1f} GiB" if t["shm_bytes"] else ""
    said = (
        f"load {t['load']:.1f} on {t['cores']} cores, {memory}, {t['open_files']} open files{shm}"
    )
    figures = {"worst": shown, **t, "warned": sorted(problems)}
    if problems:
        problem, mend = problems[shown]
        where = f" on {names(problems)}" if len(told) > 1 else ""
        yield Check("host", "warn", f"{said}; {problem}{where}", figures, mend)
    else:
        yield Check("host", "ok", said, figures)


def judge_clocks(
    offsets: Mapping[int, tuple[float, float]], names: Callable[[Iterable[int]], str]
) -> Iterator[Check]:
    """One line; ``offsets`` are against process 0, each with its uncertainty."""
    far = {rank: off for rank, (off, within) in offsets.items() if abs(off) - within > MOST_OFFSET}
    worst = max(offsets, key=lambda rank: abs(offsets[rank][0]))
    off, within = offsets[worst]
    said = f"at most {duration(abs(off))} apart (within {duration(within)})"
    figures = {"seconds_ahead": {str(r): list(pair) for r, pair in offsets.items()}}
    if far:
        each = ", ".join(f"{names([r])} is {duration(abs(o))} {'ahead' if o > 0 else 'behind'}"
                         for r, o in sorted(far.items())[:3])  # fmt: skip
        mend = "Let these hosts follow a time server: timedatectl set-ntp true"
        yield Check("clocks", "warn", each, figures, mend)
    else:
        yield Check("clocks", "ok", said, figures)


def _problem(t: Mapping[str, Any], platform: str) -> tuple[str, str] | None:
    """(what is wrong, what to mend) of a host; the gravest."""
    free, total, shm = t["free_bytes"], t["memory_bytes"], t["shm_bytes"]
    if free and total and free < LEAST_FREE * total:
        return "little memory is free", "End what fills it (ps aux --sort=-rss | head)."
    if t["open_files"] != resource.RLIM_INFINITY and t["open_files"] < LEAST_FILES:
        mend = "Raise the limit before you start: ulimit -n 65536"
        return f"fewer than {LEAST_FILES} files may be open", mend
    if platform == "gpu" and shm is not None and shm < LEAST_SHM:
        mend = "Give the container more: --shm-size=8g, or an emptyDir of medium Memory there."
        return "/dev/shm is small", mend
    if t["load"] > 1.5 * t["cores"]:
        return "others work here", "End them, or wait: what is timed now is slower than it can be."
    if platform == "tpu" and t["huge_pages"] not in (None, "always"):
        mend = f"Start and transfers are faster with: echo always | sudo tee /{HUGE_PAGES}"
        return f"transparent huge pages: {t['huge_pages']}", mend
    return None


def _memory(path: Path) -> dict[str, int]:
    """``/proc/meminfo`` in bytes."""
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def _chosen(text: str) -> str:
    return text.partition("[")[2].partition("]")[0]
