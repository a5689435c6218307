"""Splash compiled for TPUs that are not there, inside the region in which it will run."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.ops.attention.attend import Target, attend
from lm.ops.attention.pattern import Pattern, Where
from lm.ops.attention.zigzag import Shard

pytestmark = pytest.mark.tpu_compile
ON_TPU = Target("splash", "tpu")
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.fixture(params=["v5e:2x4", "v5p:2x2x2"])
def chips(request, monkeypatch):
    """Eight chips of each."""
    pytest.importorskip("libtpu")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setitem(os.environ, name, value)
    found = topologies.get_topology_desc(platform="tpu", topology_name=request.param).devices
    return np.array(found)


@pytest.mark.parametrize(
    ("length", "context", "tensor", "pattern"),
    [
        (2048, 1, 2, Pattern(window=512, soft_cap=50.0)),
        (32_768, 4, 2, Pattern()),
    ],
)
def test_splash_compiles_in_a_shard_map_forward_and_backward(
    chips, length, context, tensor, pattern
):
    """Heads split by an inner ``shard_map``; what is kept grows with the row, not its square."""
    axes = ("fsdp", "context", "tensor")
    mesh = Mesh(chips.reshape(-1, context, tensor), axes, axis_types=(AxisType.Auto,) * 3)
    rows, heads, flat = P("fsdp", "context"), P(None, None, "tensor"), P(None, None)

    def local(index, q, k, v, *where):
        shard = Shard(index, context)
        return attend(q, k, v, Where(*where[:2]), Where(*where[2:]), pattern, ON_TPU, shard)

    inner = jax.shard_map(
        local,
        axis_names={"tensor"},
        in_specs=(P(), heads, heads, heads, flat, flat, flat, flat),
        out_specs=heads,
        check_vma=False,
    )
    whole = partial(lax.all_gather, axis_name="context", axis=1, tiled=True)

    def region(q, k, v, segments, positions, d_out):
        def mixed(q, k, v):
            index = lax.axis_index("context")
            there = whole(segments), whole(positions)
            return inner(index, q, whole(k), whole(v), segments, positions, *there)

        return jax.vjp(mixed, q, k, v)[1](d_out)

    step = jax.jit(
        jax.shard_map(
            region,
            mesh=mesh,
            axis_names={"fsdp", "context"},
            in_specs=(rows,) * 6,
            out_specs=(rows,) * 3,
            check_vma=False,
        )
    )
    batch = mesh.shape["fsdp"]

    def array(*shape, dtype=jnp.bfloat16):
        spec = P(*axes) if len(shape) == 2 else rows
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((batch, length, *shape), dtype, sharding=sharding)

    q, k, where = array(8, 128), array(4, 128), array(dtype=jnp.int32)
    with jax.set_mesh(mesh):
        compiled = step.lower(q, k, k, where, where, q).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 2**20
