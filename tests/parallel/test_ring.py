"""From neighbour to neighbour: the same as a gather or a scatter at once, for the same bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from lm.parallel.ring import gather, scatter


def on(ways, function, x):
    mesh = Mesh(np.asarray(jax.devices()[:ways]), ("ring",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(
        function, mesh=mesh, in_specs=P("ring"), out_specs=P("ring"), check_vma=False
    )
    return np.asarray(jax.jit(spread)(x)), str(jax.make_jaxpr(spread)(x))


@pytest.mark.parametrize("ways", [2, 3, 4, 5, 8])
def test_everybody_has_every_shard_in_order(ways):
    x = np.arange(ways * 2 * 3, dtype=np.float32).reshape(ways * 2, 3)
    got, traced = on(ways, lambda shard: gather(shard, "ring"), x)
    assert (got.reshape(ways, ways * 2, 3) == x).all()
    assert traced.count("ppermute[") == ways - 1


@pytest.mark.parametrize("ways", [2, 3, 4, 5, 8])
def test_everybody_keeps_the_sum_of_its_own_rows(ways):
    x = np.random.default_rng(0).integers(0, 99, (ways, ways * 2, 3)).astype(np.float32)
    got, traced = on(ways, lambda whole: scatter(whole[0], "ring"), x)
    assert (got == x.sum(0)).all()
    assert traced.count("ppermute[") == ways - 1


def test_a_sum_in_bfloat16_stays_bfloat16():
    x = jnp.ones((4, 8, 2), jnp.bfloat16)
    got, _ = on(4, lambda whole: scatter(whole[0], "ring"), x)
    assert got.dtype == jnp.bfloat16
    assert (got == 4).all()
