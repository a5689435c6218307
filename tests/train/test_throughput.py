"""Speed against sums by hand."""

from types import SimpleNamespace

import jax
import pytest

from lm.models.flops import Flops
from lm.train.throughput import memory_peak_gib, peak_flops, speed


def device(kind, stats=None):
    return SimpleNamespace(device_kind=kind, memory_stats=lambda: stats, process_index=0)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_the_longest_name_that_fits_times_the_devices(kind, peak):
    assert peak_flops([device(kind)] * 4) == (peak and 4 * peak)


def test_tokens_a_second_and_both_utilisations():
    found = speed(1000, 0.5, Flops(causal=6e9, full=8e9), 40e12)
    assert found == {
        "throughput/tokens_per_second": 2000.0,
        "throughput/mfu_causal": pytest.approx(0.3),
        "throughput/mfu_full": pytest.approx(0.4),
    }


def test_a_cpu_has_no_utilisation():
    found = speed(1000, 0.5, Flops(1.0, 1.0), peak_flops(jax.devices()))
    assert found["throughput/mfu_causal"] is found["throughput/mfu_full"] is None
    assert found["throughput/tokens_per_second"] == 2000.0


def test_memory_is_the_devices_where_it_tells_and_else_the_processes():
    assert memory_peak_gib(device("x", {"peak_bytes_in_use": 3 * 2**30})) == 3.0
    assert 0.05 < memory_peak_gib(jax.devices()[0]) < 500
