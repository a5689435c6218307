"""Devices that are not here: libtpu describes any slice to the compiler, on any machine."""

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from lm.errors import ConfigError, ResourceError
from lm.plan.hardware import Slice

LIBTPU_SETTINGS = {
    # Ask no metadata server, think of this machine as the only worker, and leave the lock file of
    # a libtpu that runs beside this one alone.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # What this machine would be; of no effect on what is asked for, but its absence is warned of.
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
}
FORCED = "xla_force_host_platform_device_count"
ONE_DEVICE_A_CHIP = {"v4": {"chip_config_name": "megacore"}}
"""Options with which libtpu shows a chip as one device where it would show its two cores."""


def devices_for(asked: Slice) -> Sequence[Any]:
    """The devices of a slice: described by libtpu, or virtual ones of this machine.

    To be called before JAX starts its backend: that then is the processor's, so that planning
    touches no accelerator.

    Raises:
        ResourceError: libtpu is not installed.
        ConfigError: libtpu knows no such slice; or JAX has started with another device count.
    """
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    if asked.chip is None:
        return _processors(asked.chips)
    if importlib.util.find_spec("libtpu") is None:
        raise ResourceError(
            f"--topology {asked.name}: compiling for a TPU needs libtpu, which is not installed. "
            "Install it with: pip install -e '.[plan]'"
        )
    for name, value in LIBTPU_SETTINGS.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = dict(ONE_DEVICE_A_CHIP.get(asked.chip.name, {}))
    if asked.slices > 1:
        options["num_slices"] = asked.slices
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=asked.name, **options
        )
    except Exception as error:  # whatever libtpu or its loading says, it is about this slice
        raise ConfigError(
            f"--topology {asked.name}: libtpu refuses it: {_first_line(error)}. Choose another "
            "size, or install the libtpu of this jax: pip install -e '.[plan]'"
        ) from error
    return described.devices


def _processors(count: int) -> Sequence[Any]:
    if FORCED not in os.environ.get("XLA_FLAGS", ""):  # JAX refuses to be told twice
        with contextlib.suppress(RuntimeError):  # JAX has started: what it has must do
            jax.config.update("jax_num_cpu_devices", count)
    here = jax.devices("cpu")
    if len(here) < count:
        raise ConfigError(
            f"--devices cpu:{count}: JAX has {len(here)} here. Leave --{FORCED} out of XLA_FLAGS, "
            "or raise it."
        )
    return here[:count]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
