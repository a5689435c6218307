"""Joining the processes of a run; the only place that reads environment variables."""

import os

import jax


def start() -> None:
    """Join the other processes, where a launcher started several.

    Under SLURM, on Cloud TPU and under Open MPI JAX finds the coordinator by itself; elsewhere a
    launcher sets ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.  With
    none of these there is one process, and nothing to join.

    Compiled programs are kept in ``~/.cache/lm/jax`` (or ``JAX_COMPILATION_CACHE_DIR``), so that
    the next start of the same program is quick.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "lm", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        jax.distributed.initialize(
            address,
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 or len(_tpu_workers()) > 1:
        jax.distributed.initialize()


def _tpu_workers() -> list[str]:
    return [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
