"""Joining the processes of a run, and leaving them; here a run's environment is read."""

import inspect
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm.parallel.peers import GRACE, LOST, Door, Peers, flush

JOIN_SECONDS = 600
"""As long may the slowest process take to be there."""
HEARTBEAT_SECONDS = 40
"""After half of this to all of it JAX ends a process for the silence of another, by an abort that
names nobody: later than ``Peers``, which tell who it was."""
MESSAGE = 1024
"""Bytes for what process 0 tells the others of its door."""
_peers: list[Peers] = []


def start(*, watch: bool = True) -> None:
    """Join the other processes, where a launcher started several.

    Under SLURM, on Cloud TPU and under Open MPI JAX finds the coordinator by itself; elsewhere a
    launcher sets ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.  With
    none of these there is one process, and nothing to join.

    Compiled programs are kept in ``~/.cache/lm/jax`` (or ``JAX_COMPILATION_CACHE_DIR``), so that
    the next start of the same program is quick.

    Args:
        watch: end this process as soon as another one is gone (``Peers``).
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "lm", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # It would take SIGTERM for itself; who is asked to stop is agreed on in lm.parallel.agree.
        jax.config.update("jax_enable_preemption_service", False)  # noqa: FBT003
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        _join(
            coordinator_address=address,
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 or len(_tpu_workers()) > 1:
        _join()
    if watch and jax.process_count() > 1:
        _meet(address)


def finish() -> None:
    """All that is done together is done; from here on every process may end when it likes."""
    for peers in _peers:
        peers.close()


def several() -> bool:
    """Whether this process joined others; asks no device."""
    return jax.distributed.is_initialized()


def leave(text: str, code: int) -> NoReturn:
    """End this process at once, and the others with it, where there are others.

    Python's own way out would wait for them in JAX's barrier, and they for this process in a
    collective.

    Args:
        text: why, as one paragraph, for the others.
        code: exit code of all.
    """
    for peers in _peers:
        peers.leave(text, code)
    flush()
    os._exit(code)


def leave_failed(error: Exception) -> NoReturn:
    """End all processes after an error of this one, or of another: who was first is told of."""
    if _peers:
        time.sleep(GRACE)  # a lost process is found out meanwhile, and that ends this one
    traceback.print_exception(error)
    leave(" ".join(f"{type(error).__name__}: {error}".split())[:500], LOST)


def heartbeats() -> Path | None:
    """The folder where a launcher wants signs of life, if one does."""
    folder = os.environ.get("LM_HEARTBEATS")
    return Path(folder) if folder else None


def _join(**settings: Any) -> None:
    """``jax.distributed.initialize`` with the time limits that this JAX knows."""
    limits: dict[str, Any] = {
        "initialization_timeout": JOIN_SECONDS,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
    }
    known = inspect.signature(jax.distributed.initialize).parameters
    limits = {name: value for name, value in limits.items() if name in known}
    jax.distributed.initialize(**settings, **limits)


def _meet(address: str | None) -> None:
    """Let the processes watch each other."""
    peers = Peers(jax.process_index(), jax.process_count())
    told = np.zeros(MESSAGE, np.uint8)
    if jax.process_index() == 0:
        door = json.dumps(peers.open_door()._asdict()).encode()
        told[: len(door)] = np.frombuffer(door, np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(told), np.uint8)
    if jax.process_index() != 0:
        door = Door(**json.loads(told.tobytes().rstrip(b"\0")))
        named = [address.rsplit(":", 1)[0]] if address else _tpu_workers()[:1]
        if not peers.enter(door, named):
            sys.stderr.write(
                f"peers      process {jax.process_index()} does not reach port {door.port} of "
                f"process 0; JAX tells of lost ones after {HEARTBEAT_SECONDS} s.\n"
            )
    _peers.append(peers)


def _tpu_workers() -> list[str]:
    return [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
