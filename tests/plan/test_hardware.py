"""Slices as they are asked for, and what the chips are said to do."""

import pytest

from lm.errors import ConfigError
from lm.plan.hardware import CHIPS, TPU7X, V5E, V5P, read_slice, shapes
from lm.train.throughput import PEAK_FLOPS


@pytest.mark.parametrize(
    ("words", "name", "chips"),
    [
        ("v5e:16x16", "v5e:16x16", 256),
        ("v5litepod:4x4", "v5e:4x4", 16),
        ("V5P:4x4x8", "v5p:4x4x8", 128),
        ("trillium:8x16", "v6e:8x16", 128),
        ("ironwood:4x4x4", "tpu7x:4x4x4", 64),
        ("v4:2x2x1", "v4:2x2x1", 4),
        ("cpu:8", "cpu:8", 8),
    ],
)
def test_a_slice_is_read_by_its_version_aliases_and_grid(words, name, chips):
    asked = read_slice(words)
    assert (asked.name, asked.chips) == (name, chips)


def test_slices_multiply_the_chips():
    assert read_slice("v5e:16x16", 4).chips == 1024


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("v5x:4x4", ("'v5x'", "Did you mean 'v5")),
        ("v5e:16x17", ("16x17", "v5e:16x16")),
        ("v5e:32x32", ("32x32", "v5e:16x16")),
        ("v5e:4x4x4", ("4x4x4", "2 dimensions", "v5e:8x8")),
        ("v5p:16x16", ("16x16", "3 dimensions", "v5p:4x8x8")),
        ("v5e:256", ("256 chips", "v5e:16x16")),
        ("v5p:64", ("64 chips", "v5p:4x4x4")),
        ("v5e", ("without a size", "v5e:4x4")),
        ("v5p:0x4x4", ("0x4x4",)),
        ("cpu:0", ("cpu:0", "from 1")),
        ("cpu:many", ("cpu:many", "cpu:8")),
    ],
)
def test_what_is_no_slice_is_refused_with_the_nearest(words, told):
    with pytest.raises(ConfigError) as refused:
        read_slice(words)
    assert all(part in str(refused.value) for part in told), str(refused.value)


def test_a_grid_may_be_turned():
    assert read_slice("v5p:8x4x4").chips == read_slice("v5p:4x4x8").chips
    assert read_slice("v5e:16x8").shape == (16, 8)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_a_version_has_slices_of_its_dimensions_up_to_its_largest(chip):
    every = shapes(chip)
    assert {len(s) for s in every} == {chip.axes}
    assert every[-1] == chip.longest


def test_peaks_are_those_that_training_measures_against():
    """One figure a chip in the whole house; a tpu7x chip is two devices."""
    kinds = {"v4": "TPU v4", "v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e"}
    assert {n: CHIPS[n].peak_flops for n in kinds} == {n: PEAK_FLOPS[k] for n, k in kinds.items()}
    assert TPU7X.peak_flops * TPU7X.devices_per_chip == 2307e12


def test_links_add_up_to_the_published_interconnect_of_a_chip():
    """Both directions of two links an axis: 400 GB/s for v5e, 1200 for v5p and tpu7x."""
    both_ways = {c.name: 2 * 2 * c.axes * c.link_bytes * c.devices_per_chip for c in CHIPS.values()}
    assert both_ways["v5e"] == 400e9
    assert both_ways["v6e"] == 800e9
    assert both_ways["v5p"] == both_ways["tpu7x"] == 1200e9
    assert V5E.hbm_gib < 16
    assert V5P.hbm_gib < 96
