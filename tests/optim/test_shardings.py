"""State follows the parameters on a mesh of eight virtual devices."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.batch import Leaf
from lm.errors import ShardingError
from lm.optim.adafactor import Adafactor
from lm.optim.adamw import AdamW
from lm.optim.lion import Lion
from lm.optim.muon import Muon
from lm.optim.schedule import Constant
from lm.optim.shardings import LARGE, state_shardings

SCHEDULE = Constant(peak=1e-3)
LEAVES = {
    "w": Leaf(("layers", "embed", "mlp"), 256, 512, True, "matrix"),
    "table": Leaf(("vocab", "table"), 1, 256, False, "table"),
    "norm": {"scale": Leaf(("norm",), 256, 256, False, "norm")},
}
PARAMS = {
    "w": jax.ShapeDtypeStruct((3, 256, 512), jnp.float32),
    "table": jax.ShapeDtypeStruct((1024, 256), jnp.float32),
    "norm": {"scale": jax.ShapeDtypeStruct((256,), jnp.float32)},
}
SPECS = {"w": P(None, "fsdp", "tensor"), "table": P("fsdp"), "norm": {"scale": P()}}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def shard(mesh, optimizer):
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), SPECS)
    return state_shardings(optimizer, PARAMS, shardings, NamedSharding(mesh, P()))


@pytest.mark.parametrize("kind", [AdamW, Lion, Muon, Adafactor])
def test_every_array_of_the_state_has_a_sharding_that_fits_and_survives_an_update(mesh, kind):
    optimizer = kind(schedule=SCHEDULE, clip=1.0).build(10, LEAVES)
    shardings = shard(mesh, optimizer)
    params_at = jax.tree.map(lambda s: NamedSharding(mesh, s), SPECS)
    params = jax.tree.map(lambda p, s: jnp.ones(p.shape, p.dtype, device=s), PARAMS, params_at)
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    updates, after = jax.jit(optimizer.update, out_shardings=(params_at, shardings))(
        params, state, params
    )
    assert jax.tree.map(lambda x: x.sharding, after) == shardings
    assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("kind", [AdamW, Lion])
def test_moments_are_sharded_as_their_parameters_and_counters_replicated(mesh, kind):
    shardings = shard(mesh, kind(schedule=SCHEDULE).build(10, LEAVES))
    moments = optax.tree_utils.tree_get(shardings, "mu")
    assert jax.tree.map(lambda s: s.spec, moments) == SPECS
    counts = optax.tree_utils.tree_get_all_with_path(shardings, "count")
    assert [sharding.spec for _, sharding in counts] == [P(), P()]  # Adam's and the schedule's


def test_muon_keeps_matrices_in_one_state_and_the_rest_in_the_other(mesh):
    shardings = shard(mesh, Muon(schedule=SCHEDULE).build(10, LEAVES))
    found = [tree for _, tree in optax.tree_utils.tree_get_all_with_path(shardings, "mu")]
    assert [{s.spec for s in jax.tree.leaves(tree)} for tree in found] == [
        {SPECS["w"]},
        {SPECS["table"], SPECS["norm"]["scale"]},
    ]


def test_a_factored_moment_keeps_the_axes_of_its_dimensions(mesh):
    shardings = shard(mesh, Adafactor(schedule=SCHEDULE).build(10, LEAVES))
    rows = optax.tree_utils.tree_get(shardings, "v_row")
    columns = optax.tree_utils.tree_get(shardings, "v_col")
    assert (rows["w"].spec, columns["w"].spec) == (P(None, "fsdp"), P(None, "tensor"))
    assert (rows["table"].spec, columns["table"].spec) == (P(None), P("fsdp"))


def holding(shape) -> optax.GradientTransformation:
    """A transformation with a buffer of its own."""

    def init(params):
        return {"buffer": jnp.zeros(shape), "mu": jax.tree.map(jnp.zeros_like, params)}

    return optax.GradientTransformation(init, lambda u, s, p=None: (u, s))


def test_a_small_buffer_is_replicated_and_a_large_one_refused_by_name(mesh):
    assert shard(mesh, holding((LARGE,)))["buffer"].spec == P()
    with pytest.raises(ShardingError, match=r"buffer of shape \(1048577,\)"):
        shard(mesh, holding((LARGE + 1,)))
