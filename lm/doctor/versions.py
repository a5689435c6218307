"""Which versions run here, whether they belong together, and whether all processes have the same.

What belongs together is read from the packages' own requirements: each jax names the jaxlib, the
libtpu and the CUDA plugin that it was built with.
"""

import hashlib
import os
import re
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from lm.doctor.check import Check

TESTED = {"jax": ("0.10.2", "0.12.0.1"), "python": ("3.11", "3.13")}
"""Oldest and newest that the tests run with (``constraints.txt`` pins them)."""
SHOWN = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PLUGINS = tuple(f"jax-cuda{n}-{part}" for n in (12, 13) for part in ("plugin", "pjrt"))
OF_JAX = ("jaxlib", "libtpu", *PLUGINS)
MIXED = "Install the same on all hosts: pip install -e . --constraint constraints.txt"


class Requirement(NamedTuple):
    """``jaxlib<=0.10.2,>=0.10.1; extra == "tpu"`` in parts."""

    name: str
    bounds: str
    extra: str | None


def facts(config: str | None = None) -> dict[str, Any]:
    """What this process runs; ``config`` is a digest of the experiment that it was given."""
    installed = {name: found for name in (*SHOWN, *PLUGINS) if (found := version_of(name))}
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "python": sys.version.split()[0],
        "packages": installed,
        "code": code_digest(),
        "config": config,
        "mismatches": mismatches(),
    }


def judge(told: Mapping[int, Any], names: Callable[[Iterable[int]], str]) -> Iterator[Check]:
    """One line for the packages, one for lm's own code and the config."""
    first = told[min(told)]
    versions = {rank: {"python": t["python"], **t["packages"]} for rank, t in told.items()}
    python, packages = first["python"], first["packages"]
    said = ", ".join([f"python {python}", *(f"{n} {v}" for n, v in packages.items())])
    figures = {"python": python, **packages, "tested": {k: list(v) for k, v in TESTED.items()}}
    differing = _differing(versions, names)
    wrong = sorted({line for t in told.values() for line in t["mismatches"]})
    beyond = _beyond({"python": python, **packages})
    if differing:
        figures["differing"] = differing
        yield Check("versions", "WRONG", f"{said}; but {'; '.join(differing)}", figures, MIXED)
    elif wrong:
        figures["mismatches"] = wrong
        mend = "Install what belongs together: pip install -e . --constraint constraints.txt"
        yield Check("versions", "WRONG", "; ".join(wrong), figures, mend)
    elif beyond:
        mend = "Expect it to work, and if it does not, take the newest that is tested."
        yield Check("versions", "warn", f"{said}; {beyond}", figures, mend)
    else:
        yield Check("versions", "ok", said, figures)
    yield _code(told, names)


def _code(told: Mapping[int, Any], names: Callable[[Iterable[int]], str]) -> Check:
    first = told[min(told)]
    digests = {rank: {"lm": t["code"], "config": t["config"]} for rank, t in told.items()}
    figures = {"lm": first["code"], "config": first["config"]}
    of_all = f", the same on all {len(told)} processes" if len(told) > 1 else ""
    given = f", config {first['config'][:12]}" if first["config"] else ""
    said = f"lm {first['code'][:12]}{given} (digests){of_all}"
    differing = _differing(digests, names)
    if differing:
        mend = "Copy the same checkout and the same config to every host."
        figures["differing"] = differing
        return Check("code", "WRONG", "; ".join(differing), figures, mend)
    return Check("code", "ok", said, figures)


def _differing(
    told: Mapping[int, Mapping[str, Any]], names: Callable[[Iterable[int]], str]
) -> list[str]:
    """Who has something else than most have, a line for each thing."""
    lines: list[str] = []
    for thing in dict.fromkeys(name for t in told.values() for name in t):
        holders: dict[Any, list[int]] = defaultdict(list)
        for rank, t in told.items():
            holders[t.get(thing)].append(rank)
        usual = Counter({v: len(ranks) for v, ranks in holders.items()}).most_common(1)[0][0]
        for value, ranks in holders.items():
            if value != usual:
                lines.append(f"{names(ranks)}: {thing} {_brief(value)}, not {_brief(usual)}")
    return lines


def _brief(value: Any) -> str:
    return "none" if value is None else str(value)[:16]


def _beyond(versions: Mapping[str, str]) -> str | None:
    """Which are newer than what is tested."""
    newer = [
        f"{name} {versions[name]} is newer than {newest}, the newest tested"
        for name, (_, newest) in TESTED.items()
        if _key(versions.get(name, "0"))[: len(_key(newest))] > _key(newest)
    ]
    return "; ".join(newer) or None


def version_of(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def mismatches(version: Callable[[str], str | None] = version_of) -> list[str]:
    """Where an installed package is not what lm, or jax, asks for; a line each."""
    lines: list[str] = []
    for owner in ("lm", "jax"):
        try:
            required = [read_requirement(line) for line in metadata.requires(owner) or ()]
        except metadata.PackageNotFoundError:
            continue  # run from a checkout that is not installed
        for need in required:
            if need.extra is not None and (owner == "lm" or need.name not in OF_JAX[1:]):
                continue
            found = version(need.name)
            if found is None and need.extra is None:
                lines.append(f"{owner} needs {need.name}{need.bounds}, and there is none")
            elif found is not None and not within_bounds(found, need.bounds):
                lines.append(f"{owner} {version(owner)} needs {need.name}{need.bounds}, "
                             f"and {found} is installed")  # fmt: skip
    return list(dict.fromkeys(lines))


def read_requirement(line: str) -> Requirement:
    """The parts of a requirement as a package's metadata spell it."""
    stated, _, marker = line.partition(";")
    found = re.match(r"\s*([\w.-]+)\s*(?:\[[^]]*\])?\s*\(?([^)]*)\)?", stated)
    extra = re.search(r"""extra\s*==\s*["']([\w.-]+)["']""", marker)
    if found is None:
        return Requirement(stated.strip(), "", None)
    return Requirement(found[1], found[2].strip(), extra[1] if extra else None)


def within_bounds(version: str, bounds: str) -> bool:
    """Whether a version is within ``<=0.10.2,>=0.10.1`` or ``==0.0.42.*``."""
    return all(_fits(_key(version), bound.strip()) for bound in bounds.split(",") if bound.strip())


def _fits(version: tuple[int, ...], bound: str) -> bool:
    sign, wanted = re.match(r"\s*([<>=!~]*)\s*(.*)", bound).groups()  # type: ignore[union-attr]
    key = _key(wanted)
    if wanted.endswith(".*"):
        same = version[: len(key)] == key
        return same if sign == "==" else not same
    size = max(len(version), len(key))
    a, b = (k + (0,) * (size - len(k)) for k in (version, key))
    if sign == "~=":
        return a >= b and version[: len(key) - 1] == key[:-1]
    return {"==": a == b, "!=": a != b, "<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b}.get(
        sign, True
    )


def _key(version: str) -> tuple[int, ...]:
    """The numbers of a version; what follows them (dev, rc, +cuda) is left out."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)


def code_digest() -> str:
    """A digest of lm's own files: the same where the same code runs, whatever git says."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
