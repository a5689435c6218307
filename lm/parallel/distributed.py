"""Joining the processes of a run; the only place that reads environment variables."""

import os

import jax


def start() -> None:
    """Join the other processes, where a launcher started several.

    Under SLURM, on Cloud TPU and under Open MPI JAX finds the coordinator by itself; elsewhere a
    launcher sets ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.  With
    none of these there is one process, and nothing to do.
    """
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
