"""A peak is split into parts that sum to it."""

import jax
import pytest

from lm.plan.compiled import Built, Shortage, Sizes, shortage
from lm.plan.memory import GIB, Shards, hbm, shards

HELD = Shards(2.0 * GIB, 4.0 * GIB, 2.0 * GIB)


def built(peak: float = 0.0, short: Shortage | None = None) -> Built:
    sizes = None if short else Sizes(peak * GIB, 6 * GIB, 0.5 * GIB)
    return Built(sizes, None, None, short, 0.0, 0.0)


def parts(h):
    return h.parameters + h.optimizer + h.gradients + h.activations + h.temporaries + h.code


@pytest.mark.parametrize("peak", [20, 12, 9, 7, 6])
@pytest.mark.parametrize("kept", [0, 1, 5, 30])
def test_parts_sum_to_the_peak_and_none_is_negative(peak, kept):
    h = hbm(built(peak), HELD, float(kept * GIB), 15.75)
    assert h.peak == peak + 0.5
    assert parts(h) == pytest.approx(h.peak)
    assert min(h[1:]) >= 0
    assert (h.parameters, h.optimizer) == (2, 4)


def test_activations_and_gradients_are_what_the_shapes_say_where_there_is_room():
    h = hbm(built(20), HELD, 3.0 * GIB, 15.75)
    assert (h.activations, h.gradients, h.temporaries) == (3, 2, 9)
    assert h.short == pytest.approx(4.75)


def test_a_refusal_says_what_is_needed_and_what_is_lacking():
    h = hbm(built(short=Shortage(40 * GIB, 15.5 * GIB)), HELD, 30.0 * GIB, 15.75)
    assert (h.peak, h.limit, h.short) == (40, 15.5, 24.5)
    assert parts(h) == pytest.approx(40)


TEMPORARIES = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (203.92G) exceeds available HBM (15.75G). HLO module: jit_step."
)
USED = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.50G of 15.48G hbm. Exceeded hbm capacity by 5.02G."
)


@pytest.mark.parametrize(("text", "needed"), [(TEMPORARIES, 203.92), (USED, 20.5)])
def test_both_spellings_of_out_of_memory_are_understood(text, needed):
    found = shortage(text)
    assert found is not None
    assert found.needed / GIB == pytest.approx(needed)
    assert 15 < found.available / GIB < 16


def test_another_refusal_is_no_shortage_of_hbm():
    vmem = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem."
    assert shortage(vmem) is None
    assert shortage("INTERNAL: Mosaic failed to compile TPU kernel") is None


def test_shards_are_what_one_device_holds(tools):
    """AdamW's two moments are as large as the weights; norms are whole everywhere."""
    program = tools.ask(tools.experiment()).program
    held = shards(program)
    numbers = sum(
        x.size // (1 if x.sharding.is_fully_replicated else 8)
        for x in jax.tree.leaves(program.state.trainable)
    )
    assert held.parameters == held.gradients == 4 * numbers
    assert held.optimizer == pytest.approx(2 * held.parameters, rel=0.01)
