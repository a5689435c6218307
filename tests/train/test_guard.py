"""What counts as a spike, and that it follows from the steps alone."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import CheckpointError, ConfigError
from lm.train.guard import LAG, Guard, Watch, all_finite, limit

STEPS = 1500


def series(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A loss that falls from 10 to 3 with noise, and the norms of its gradients; a spiky tail."""
    rng = np.random.default_rng(seed)
    step = np.arange(STEPS)
    loss = 3 + 7 * np.exp(-step / 200) + rng.normal(0, rng.uniform(0.005, 0.1), STEPS)
    norm = (0.3 + 3 * np.exp(-step / 100)) * np.exp(rng.normal(0, rng.uniform(0.02, 0.2), STEPS))
    return loss, norm


def hear(watch: Watch, losses, norms, first: int = 1):
    """The steps that spike."""
    found = []
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=first):
        values = {"loss": float(loss), "gradient_norm": float(norm), "skipped": 0.0}
        finding = watch.hear(step, values)
        if finding is not None and finding.spike:
            found.append(step)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_falls_smoothly_with_noise_is_no_cause_for_alarm(seed):
    assert hear(Watch(Guard()), *series(seed)) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("which", [0, 1])
def test_a_jump_to_the_fivefold_is_always_found(seed, which):
    values = series(seed)
    at = int(np.random.default_rng(seed).integers(70, STEPS))
    values[which][at] *= 5
    assert hear(Watch(Guard()), *values) == [at + 1]


def test_a_level_that_stays_is_no_spike_for_ever():
    """Half a window later it is the new measure."""
    losses = np.full(400, 2.0)
    losses[200:] = 9.0
    found = hear(Watch(Guard()), losses, np.ones(400))
    assert found[0] == 201
    assert found[-1] < 201 + 64 + LAG


def test_nothing_spikes_before_half_a_window_is_known():
    losses = np.ones(40)
    losses[:8:2] = 100
    watch = Watch(Guard(window=16))
    assert hear(watch, losses[:9], np.ones(9)) == []
    assert np.isinf(watch.limits(9)).all()
    assert np.isfinite(watch.limits(10)).all()


def test_the_limit_is_the_median_and_so_many_robust_deviations():
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    assert limit(values, 2.0, 0.01) == pytest.approx(3 + 2 * 1.4826)
    assert limit([5.0] * 9, 6.0, 0.01) == pytest.approx(5.3)


def test_limits_follow_from_steps_that_are_known_in_time_whatever_else_is_known():
    """Whether the host had read the step just before, or not yet, decides nothing."""
    losses, norms = series(0)
    early, late = Watch(Guard(window=8)), Watch(Guard(window=8))
    hear(early, losses[:28], norms[:28])
    hear(late, losses[:29], norms[:29])
    np.testing.assert_array_equal(early.limits(30), late.limits(30))
    assert (late.limits(31) != late.limits(30)).any()


def test_what_is_saved_decides_as_what_was_never_interrupted():
    losses, norms = series(3)
    losses[[50, 90]] = math.nan, 60.0
    whole = Watch(Guard(window=16))
    spikes = hear(whole, losses[:100], norms[:100])
    for cut in (10, 51, 89, 90, 91):
        first = Watch(Guard(window=16))
        found = hear(first, losses[:cut], norms[:cut])
        told = json.loads(json.dumps(first.saved(), allow_nan=False))
        second = Watch(Guard(window=16), told)
        found += hear(second, losses[cut:100], norms[cut:100], first=cut + 1)
        assert found == spikes == [91]
        assert second.saved() == whole.saved()


def test_skips_are_counted_and_a_good_step_ends_their_row():
    watch = Watch(Guard())
    lost = {"loss": math.nan, "gradient_norm": 1.0, "skipped": 1.0}
    fine = {"loss": 1.0, "gradient_norm": 1.0, "skipped": 0.0}
    told = [watch.hear(step, values) for step, values in enumerate([lost, lost, fine, lost], 1)]
    assert [None if x is None else (x.skipped, x.spike, x.why) for x in told] == [
        (True, False, "loss is nan"),
        (True, False, "loss is nan"),
        None,
        (True, False, "loss is nan"),
    ]
    assert (watch.skips, watch.in_a_row, watch.spikes) == (3, 1, 0)


@pytest.mark.parametrize("saved", [{}, {"skips": "x"}, {"skips": 1, "heard": [[1]]}])
def test_counts_that_are_damaged_are_named(saved):
    told = {"in_a_row": 0, "spikes": 0, "rollbacks": 0, "heard": []} | saved
    with pytest.raises(CheckpointError, match="part 'guard' is damaged"):
        Watch(Guard(), told)


@pytest.mark.parametrize(
    "wrong",
    [{"stop_after_skips": 0}, {"window": 3}, {"rollbacks": -1}, {"recompute_every": 0},
     {"deviations": 0.0}],
)  # fmt: skip
def test_a_guard_that_means_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match=rf"guard\.{next(iter(wrong))}"):
        Guard(**wrong)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_number_that_is_not_finite_is_seen_among_all(bad):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.NamedSharding(mesh, jax.P("x"))
    fine = {"a": jax.device_put(jnp.ones(16), where), "n": jnp.int32(3), "k": jax.random.key(0)}
    assert all_finite(fine)
    assert not all_finite(fine | {"a": fine["a"].at[11].set(bad)})
