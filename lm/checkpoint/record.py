"""What a run was made with: commit, versions, command line, devices, counts."""

import functools
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

PACKAGES = ("lm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The facts of one checkpoint, kept as JSON beside it."""

    step: int
    tokens: int
    """Tokens that the model was trained on so far."""
    parameters: int
    time: str
    """When it was saved: ISO 8601, UTC."""
    commit: str | None
    """The git commit of this code, with ``+changes`` where the work tree differs; None: no git."""
    python: str
    versions: dict[str, str]
    argv: tuple[str, ...]
    devices: str
    """How many of which kind, as ``8 x TPU v5e``."""
    processes: int


def make_record(*, step: int, tokens: int, parameters: int) -> Record:
    """The record of this process as it stands now."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return Record(
        step=step,
        tokens=tokens,
        parameters=parameters,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        python=sys.version.split()[0],
        versions=_versions(),
        argv=tuple(sys.argv),
        devices=f"{jax.device_count()} x {', '.join(kinds)}",
        processes=jax.process_count(),
    )


@functools.cache
def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def _commit() -> str | None:
    """The commit of the code that runs now; asked once, for the files may change later."""
    # Installed into some other project's tree, the code is not that repository's: ask for a file.
    if _git("ls-files", "--error-unmatch", str(_package() / "__init__.py")) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", str(_package()))
    return f"{commit}+changes" if commit and changes else commit


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _package() -> Path:
    return Path(__file__).parents[1]
