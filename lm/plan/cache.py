"""What was planned before, kept by content: the same question is answered without a compiler.

An entry is a JSON file named by the digest of all that its answer depends on: the experiment but
for its name, the slice, the versions of the compilers and their flags, and the source of this
system, so that an edited checkout never answers from the past.  What is torn, or was not written
for its name, is no entry.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm.plan.hardware import Slice
from lm.plan.planning import versions

FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Variables with which compilers are told what they would do otherwise."""


class Cache(NamedTuple):
    """Entries in a folder; without one nothing is kept."""

    folder: Path | None

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry of a key; None where there is none, or none that is whole."""
        if self.folder is None:
            return None
        try:
            found = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(found, dict) and found.get("key") == key
        entry = found.get("entry") if whole else None
        return entry if isinstance(entry, dict) else None

    def put(self, key: str, entry: Mapping[str, Any]) -> None:
        """Keep an entry, whole or not at all; a full or foreign disk costs only the memory."""
        if self.folder is None:
            return
        text = json.dumps({"key": key, "entry": entry})
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(path, self.folder / f"{key}.json")
            except OSError:
                Path(path).unlink(missing_ok=True)


def default_folder() -> Path:
    """``~/.cache/lm/plans``, or where XDG_CACHE_HOME says."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lm" / "plans"


def key_of(experiment: Mapping[str, Any], asked: Slice, **more: Any) -> str:
    """The name of an answer.

    Args:
        experiment: as JSON.
        asked: the devices.
        more: what else the answer depends on.
    """
    told = {
        "experiment": {name: value for name, value in experiment.items() if name != "name"},
        "slice": [asked.name, asked.slices],
        "versions": versions(),
        "flags": {name: os.environ.get(name, "") for name in FLAGS},
        "source": own_source(),
        "more": more,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@functools.cache
def own_source() -> str:
    """Digest of this system, as it was when it was first asked for: what is loaded stays."""
    return source_digest(Path(__file__).parents[1])


def source_digest(folder: Path) -> str:
    """Of every Python file below a folder, names and contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(str(path.relative_to(folder)).encode() + b"\0")
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
