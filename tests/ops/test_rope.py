"""Rotary positions are rotations of complex numbers."""

import jax.numpy as jnp
import numpy as np

from lm.ops.rope import angles, rotate

B, T, N, H = 2, 6, 3, 8


def given():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, N, H)).astype(np.float32)
    positions = rng.integers(0, 500, (B, T)).astype(np.int32)
    return x, positions, (10_000.0 ** (-np.arange(0, H, 2) / H)).astype(np.float32)


def test_rotating_halves_is_multiplying_by_a_complex_number():
    x, positions, frequencies = given()
    z = x[..., : H // 2] + 1j * x[..., H // 2 :]
    turned = z * np.exp(1j * positions[..., None, None] * frequencies.astype(np.float64))
    want = np.concatenate([turned.real, turned.imag], -1)
    got = rotate(jnp.asarray(x), angles(jnp.asarray(positions), jnp.asarray(frequencies)))
    np.testing.assert_allclose(got, want, atol=2e-4)  # 500 radians in float32


def test_products_depend_on_the_distance_alone():
    x, positions, frequencies = given()
    near = positions % 40
    q, k = jnp.asarray(x), jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    def products(shift):
        turn = lambda y, at: rotate(y, angles(jnp.asarray(at), jnp.asarray(frequencies)))  # noqa: E731
        return (turn(q, near + shift) * turn(k, near[:, ::-1] + shift)).sum(-1)

    np.testing.assert_allclose(products(0), products(30), atol=1e-4)
    assert float(jnp.abs(products(0) - (q * k).sum(-1)).max()) > 0.1


def test_the_dtype_is_kept():
    x, positions, frequencies = given()
    by = angles(jnp.asarray(positions), jnp.asarray(frequencies))
    assert rotate(jnp.asarray(x, jnp.bfloat16), by).dtype == jnp.bfloat16
