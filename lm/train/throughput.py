"""How fast a step is: tokens a second, and what share of the chip's peak that is.

MFU, the model FLOPs utilisation (Chowdhery 2022, arXiv:2204.02311), is the model's own operations
a second over the peak of all devices; recomputation counts as no work.  Both ways to count
attention are given (``lm.models.flops``), since published figures use either.
"""

import resource
import sys
from collections.abc import Sequence
from typing import Any

from lm.models.flops import Flops
from lm.train.memory import memory_stats

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # JAX shows a chip as two devices
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bf16 operations a second, by the start of the device kind; the makers' data sheets."""


def peak_flops(devices: Sequence[Any]) -> float | None:
    """The peak of all devices together; None where no figure is published (a CPU)."""
    kind = str(getattr(devices[0], "device_kind", ""))
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] * len(devices) if known else None


def speed(
    tokens: int, seconds: float, flops: Flops | None, peak: float | None
) -> dict[str, float | None]:
    """The metrics of one step."""
    rate = tokens / seconds
    causal = None if peak is None or flops is None else rate * flops.causal / peak
    full = None if peak is None or flops is None else rate * flops.full / peak
    return {
        "throughput/tokens_per_second": rate,
        "throughput/mfu_causal": causal,
        "throughput/mfu_full": full,
    }


def memory_peak_gib(device: Any) -> float:
    """The most memory used so far: of the device where it tells, else of this process."""
    told = memory_stats(device)
    if "peak_bytes_in_use" in told:
        return told["peak_bytes_in_use"] / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
