"""The devices that JAX shows, against those that stand in the machine."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lm.doctor.check import Check
from lm.doctor.versions import PLUGINS, version_of
from lm.train.memory import device_memory, memory_stats

GOOGLE = "0x1ae0"
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
"""PCI devices of Google's that are TPUs (jax._src.hardware_utils); its network cards are not."""
EXTRAS = {"tpu": "pip install -e '.[tpu]'", "gpu": "pip install -e '.[gpu]'"}


def present(root: Path = Path("/")) -> list[str]:
    """The kinds of accelerators that the system shows: ``tpu``, ``gpu``."""
    found: list[str] = []
    cards = (path.parent for path in root.glob("sys/bus/pci/devices/*/vendor"))
    if any(_word(c / "vendor") == GOOGLE and _word(c / "device") in TPUS for c in cards) or any(
        root.glob("dev/accel[0-9]*")
    ):
        found.append("tpu")
    if any(root.glob("dev/nvidia[0-9]*")) or any(root.glob("proc/driver/nvidia/gpus/*")):
        found.append("gpu")
    return found


def facts(devices: Sequence[Any], root: Path = Path("/")) -> dict[str, Any]:
    """What this process sees of the devices."""
    own = [d for d in devices if d.process_index == jax.process_index()]
    return {
        "platform": devices[0].platform,
        "kinds": sorted({d.device_kind for d in devices}),
        "count": len(devices),
        "own": len(own),
        "memory_bytes": device_memory(own),
        "memory_in_use": memory_stats(own[0]).get("bytes_in_use"),
        "present": present(root),
        "asked": jax.config.jax_platforms or None,  # pyright: ignore[reportAttributeAccessIssue]
        "installed": {"tpu": bool(version_of("libtpu")), "gpu": any(map(version_of, PLUGINS))},
    }


def judge(told: Mapping[int, Any], names: Callable[[Iterable[int]], str]) -> Iterator[Check]:
    """One line: what there is, whether all see the same, and whether it is what was meant."""
    first = told[min(told)]
    memory, kinds = first["memory_bytes"], ", ".join(first["kinds"])
    said = f"{first['count']} x {kinds}"
    said += f", {first['own']} a process" if len(told) > 1 else ""
    told_memory = f"{memory / 2**30:.1f} GiB each" if memory else "memory not told"
    said += f", {told_memory}" + (" (of the host's free)" if first["platform"] == "cpu" else "")
    missed = {rank: m for rank, t in told.items() if (m := _missed(t))}
    figures = {k: first[k] for k in ("platform", "kinds", "count", "own", "memory_bytes")}
    figures["present"] = sorted({kind for t in told.values() for kind in t["present"]})
    odd = _odd(told, names)
    if missed:
        rank = min(missed)
        status, problem, mend = missed[rank]
        where = f" on {names(missed)}" if len(told) > 1 else ""
        yield Check("devices", status, f"{said}; {problem}{where}", figures, mend)
    elif odd:
        mend = "Look which chips are missing there; restart that host's runtime or leave it out."
        yield Check("devices", "WRONG", f"{said}; {odd}", {**figures, "odd": odd}, mend)
    elif memory is None:
        mend = "Update the driver or runtime: what does not fit will only be found by trying."
        yield Check("devices", "warn", said, figures, mend)
    else:
        yield Check("devices", "ok", said, figures)


def _missed(told: Mapping[str, Any]) -> tuple[Any, str, str] | None:
    """(status, problem, what to mend) where an accelerator stands idle."""
    if told["platform"] != "cpu" or not told["present"]:
        return None
    kind = told["present"][0]
    what = {"tpu": "a TPU", "gpu": "an NVIDIA GPU"}[kind]
    if told["asked"] == "cpu":
        mend = "Unset JAX_PLATFORMS (it says cpu) to train on it."
        return "warn", f"{what} is there, and JAX was told to use the CPU", mend
    problem = f"{what} is there, and JAX runs on the CPU"
    if not told["installed"][kind]:
        return "WRONG", problem, f"Install what JAX needs for it: {EXTRAS[kind]}"
    mend = (
        "Its library is installed: look for another process that holds it, for its device files' "
        f"permissions, and what JAX_PLATFORMS={'tpu' if kind == 'tpu' else 'cuda'} says."
    )
    return "WRONG", problem, mend


def _odd(told: Mapping[int, Any], names: Callable[[Iterable[int]], str]) -> str | None:
    """Who sees other devices than most."""
    for thing in ("platform", "kinds", "count", "own"):
        values = {rank: str(t[thing]) for rank, t in told.items()}
        usual = Counter(values.values()).most_common(1)[0][0]
        others = {rank: v for rank, v in values.items() if v != usual}
        if others:
            what = {"own": "devices of its own", "count": "devices in all"}.get(thing, thing)
            value = others[min(others)]
            return f"{what}: {value} for {names(others)}, {usual} for the others"
    return None


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
