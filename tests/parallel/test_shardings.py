"""Rules that fit no mesh are errors that name the mend; those that fit split what they say."""

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.batch import Leaf
from lm.errors import ShardingError
from lm.parallel.mesh import Mesh, make_mesh
from lm.parallel.place import own_rows
from lm.parallel.rules import FSDP, FSDP_TENSOR
from lm.parallel.shardings import manual_part, shardings, spec

CUBE = make_mesh(Mesh(data=2, fsdp=2, tensor=2), jax.devices())


def leaf(*axes: str) -> Leaf:
    return Leaf(axes, 1, 1, stacked=False, kind="matrix")


def test_logical_axes_become_mesh_axes_and_those_of_size_one_go():
    assert spec(("embed", "heads", "head"), FSDP_TENSOR, CUBE) == P("fsdp", "tensor", None)
    assert spec(("vocab", "table"), FSDP_TENSOR, CUBE) == P("tensor", "fsdp")
    assert spec(("batch", "position"), FSDP_TENSOR, CUBE) == P(("data", "fsdp"), None)
    flat = make_mesh(Mesh(fsdp=8), jax.devices())
    assert spec(("table", "mlp"), FSDP_TENSOR, flat) == P("fsdp", None)
    assert spec(("embed", "mlp"), FSDP, CUBE) == P("fsdp", None)


@pytest.mark.parametrize(
    ("axes", "rules", "message"),
    [
        (("embed", "head_s"), FSDP, "no entry for the logical axis 'head_s'. Did you mean 'head"),
        (("embed",), FSDP | {"embed": ("fspd",)}, "'fspd', which is no mesh axis. Did.*'fsdp'"),
        (("embed", "table"), FSDP_TENSOR, "split twice over mesh axis 'fsdp'. Map one"),
    ],
)
def test_a_table_that_cannot_be_followed_is_refused(axes, rules, message):
    with pytest.raises(ShardingError, match=message):
        spec(axes, rules, CUBE)


def test_sizes_that_do_not_divide_are_named_with_the_mend():
    leaves = {"block": {"key": leaf("embed", "kv_heads", "head"), "table": leaf("vocab", "table")}}
    shape = jax.ShapeDtypeStruct
    good = {"block": {"key": shape((4, 2, 8), "f4"), "table": shape((64, 8), "f4")}}
    placed = shardings(leaves, good, FSDP_TENSOR, CUBE)
    assert placed["block"]["key"].shard_shape((4, 2, 8)) == (2, 1, 8)
    bad = {"block": {"key": shape((4, 3, 8), "f4"), "table": shape((63, 8), "f4")}}
    with pytest.raises(ShardingError) as caught:
        shardings(leaves, bad, FSDP_TENSOR, CUBE)
    told = str(caught.value)
    assert "block.key has shape (4, 3, 8); its axis 'kv_heads' of size 3 cannot be split 2" in told
    assert "(1 more like it.)" in told
    with pytest.raises(ShardingError, match="Pad vocab_size to 64"):
        shardings({"t": leaf("vocab", "table")}, {"t": bad["block"]["table"]}, FSDP_TENSOR, CUBE)


def test_a_manual_region_is_told_of_token_axes_alone():
    whole = P(("fsdp", "tensor"), "tensor", None, ("data", "fsdp"))
    assert manual_part(whole, frozenset({"data", "fsdp"})) == P(
        "fsdp", None, None, ("data", "fsdp")
    )


def test_one_process_feeds_every_row():
    rows = NamedSharding(CUBE, P(("data", "fsdp")))
    assert own_rows(rows, 8).tolist() == list(range(8))


def test_a_process_feeds_the_rows_of_its_devices():
    """Half of the devices stand for a process that has no others."""

    class Half:
        def addressable_devices_indices_map(self, shape):
            del shape
            return {0: (slice(4, 6),), 1: (slice(4, 6),), 2: (slice(0, 2),), 3: (slice(0, 2),)}

    unchecked = getattr(own_rows, "__wrapped__", own_rows)
    assert unchecked(Half(), 8).tolist() == [0, 1, 4, 5]
