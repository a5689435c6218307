"""Draws follow the distribution that the limits leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError
from lm.generate.sampling import GREEDY, Sampler, sample

DRAWS = 20_000
LOGITS = np.log(np.array([0.05, 0.3, 0.1, 0.25, 0.2, 0.1]))


def shares(sampler: Sampler, logits: np.ndarray = LOGITS) -> np.ndarray:
    keys = jax.random.split(jax.random.key(1), DRAWS)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS, logits.size))
    drawn = jax.jit(lambda x, k: sample(x, k, sampler))(rows, keys)
    return np.bincount(np.asarray(drawn), minlength=logits.size) / DRAWS


def normalised(weights: list[float]) -> np.ndarray:
    return np.asarray(weights) / np.sum(weights)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Sampler(), [0.05, 0.3, 0.1, 0.25, 0.2, 0.1]),
        (Sampler(temperature=0.5), [0.05**2, 0.3**2, 0.1**2, 0.25**2, 0.2**2, 0.1**2]),
        (Sampler(top_k=2), [0, 0.3, 0, 0.25, 0, 0]),
        (Sampler(top_k=100), [0.05, 0.3, 0.1, 0.25, 0.2, 0.1]),
        (Sampler(top_p=0.5), [0, 0.3, 0, 0.25, 0, 0]),
        (Sampler(top_p=0.6), [0, 0.3, 0, 0.25, 0.2, 0]),
        (Sampler(top_p=1.0), [0.05, 0.3, 0.1, 0.25, 0.2, 0.1]),
        # Of the three that are kept, the first two already have 0.55 / 0.75 of the probability.
        (Sampler(top_k=3, top_p=0.7), [0, 0.3, 0, 0.25, 0, 0]),
        (Sampler(top_p=1e-9), [0, 1, 0, 0, 0, 0]),
        (GREEDY, [0, 1, 0, 0, 0, 0]),
    ],
    ids=str,
)
def test_draws_follow_the_limited_distribution(sampler: Sampler, expected: list[float]) -> None:
    wanted, found = normalised(expected), shares(sampler)
    assert np.all(found[wanted == 0] == 0)
    np.testing.assert_allclose(found, wanted, atol=4 * np.sqrt(0.25 / DRAWS))


def test_what_is_out_of_the_question_is_never_drawn() -> None:
    logits = np.where(np.arange(6) == 1, -np.inf, LOGITS)
    for sampler in (Sampler(temperature=50.0), Sampler(top_k=6, top_p=1.0), Sampler(top_p=0.999)):
        assert shares(sampler, logits)[1] == 0


def test_a_row_is_drawn_by_its_own_key_alone() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 40)), jnp.float32)
    keys = jax.random.split(jax.random.key(7), 5)
    for sampler in (Sampler(), Sampler(top_k=10, top_p=0.9)):
        together = sample(logits, keys, sampler)
        alone = [int(sample(logits[i : i + 1], keys[i : i + 1], sampler)[0]) for i in range(5)]
        assert together.tolist() == alone


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        Sampler(**wrong)  # pyright: ignore[reportArgumentType]
