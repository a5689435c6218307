"""How much memory arrays need on a device, and how much it has."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lm.errors import ResourceError


def bytes_on_device(x: jax.ShapeDtypeStruct) -> int:
    """Bytes of one device's part of an array."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return 8
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


def compiled_bytes(compiled: Any) -> int | None:
    """Bytes a device needs while a compiled program runs; None where the backend does not tell."""
    told = compiled.memory_analysis()
    if told is None:
        return None
    fresh = told.output_size_in_bytes - told.alias_size_in_bytes
    return told.argument_size_in_bytes + told.temp_size_in_bytes + fresh


def device_memory(devices: Sequence[Any]) -> int | None:
    """Bytes that one device may use; None where nothing tells.

    Devices that are a machine's own processor share what the machine has free.
    """
    own = [device for device in devices if device.process_index == jax.process_index()]
    told = memory_stats(own[0]) if own else {}
    if "bytes_limit" in told:
        return int(told["bytes_limit"])
    if devices[0].platform != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return int(free.split()[1]) * 1024 // max(1, len(own)) if free else None


def memory_stats(device: Any) -> Mapping[str, int]:
    """What a device tells of its memory; nothing where it belongs to another process."""
    if device.process_index != jax.process_index():
        return {}
    return device.memory_stats() or {}


def refuse_beyond(need: int, devices: Sequence[Any], what: str) -> None:
    """Refuse what cannot fit.

    Raises:
        ResourceError: with what is needed and what there is.
    """
    limit = device_memory(devices)
    if limit is not None and need > limit:
        raise ResourceError(
            f"memory: {what} need {need / 2**30:,.2f} GiB a device, and a device has "
            f"{limit / 2**30:,.2f} GiB. Split the model over more devices (fsdp or tensor), give "
            "fewer sequences or a shorter length to a step, use more microbatches or "
            "execution.remat=block, or take a smaller model."
        )
