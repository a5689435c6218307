"""What an attention layer refuses, and what its options do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError
from lm.layers.attention import Attention
from lm.layers.context import Context
from lm.layers.execution import Execution
from lm.layers.norm import RmsNorm
from lm.layers.placement import Placement
from lm.ops.attention.pattern import Where

PLAIN = {"num_heads": 4, "num_kv_heads": 2, "head_width": 8}
D, T = 16, 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "must be positive"),
        ({"num_kv_heads": 3}, "4 query heads cannot share 3 key heads"),
        ({"window": 0}, "window 0 sees nothing"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Attention(**(PLAIN | change))


def outputs(scale=1.0, **changes):
    """The layer's output for queries and keys whose weights are ``scale`` times as large."""
    module = Attention(**(PLAIN | changes)).build(Execution(), Placement())
    at = jnp.arange(T, dtype=jnp.int32)[None]
    where = Where(jnp.ones_like(at), at)
    context = Context(where, where, jnp.zeros(1, jnp.int32), {})
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, T, D)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, context)["params"]
    shapes = jax.tree.map(lambda d: d.value, shapes, is_leaf=lambda d: hasattr(d, "unbox"))
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
    for name in ("query", "key"):
        params[name] = jax.tree.map(lambda w: scale * w, params[name])
    return np.asarray(jax.jit(lambda p: module.apply({"params": p}, x, context)[0])(params))


def test_normed_queries_and_keys_forget_their_size():
    norm = {"qk_norm": RmsNorm(epsilon=1e-12)}
    np.testing.assert_allclose(outputs(9.0, **norm), outputs(**norm), rtol=1e-3, atol=1e-4)
    assert np.abs(outputs(9.0) - outputs()).max() > 0.1


def test_each_option_changes_the_result():
    found = [
        outputs(),
        outputs(window=3),
        outputs(soft_cap=2.0),
        outputs(scale=1.0, qkv_bias=True),
        outputs(out_bias=True),
    ]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-2 for other in found[:i])
