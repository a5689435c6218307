"""A program is made of shapes; what does not divide is refused before anything is compiled."""

import jax
import pytest

from lm.errors import ShardingError
from lm.models.llama import llama2_70b
from lm.objectives.causal import CausalLm
from lm.optim.adamw import AdamW
from lm.optim.schedule import Constant
from lm.parallel.mesh import Mesh
from lm.train.program import build_program, parameter_count
from lm.train.step import Training
from tests.train.tiny import LENGTH, place, tiny_llama

ADAM = AdamW(schedule=Constant(peak=1e-3))


def program(mesh, devices, model=None, **training):
    sizes = {"steps": 1, "sequences": 8, "length": LENGTH} | training
    placed = place(model or tiny_llama(), mesh, devices)
    return build_program(placed, CausalLm(), ADAM, Training(**sizes))


def test_a_program_of_70b_parameters_allocates_nothing():
    """Abstract state first: were one leaf real, this machine could not hold it."""
    built = program(Mesh(fsdp=4, tensor=2), 8, llama2_70b())
    assert parameter_count(built) == 68_976_648_192
    leaves = jax.tree.leaves(built.state)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    weights = sum(x.size for x in jax.tree.leaves(built.state.trainable))
    moments = [x for x in jax.tree.leaves(built.state.optimizer) if x.ndim]
    assert sum(x.size for x in moments) == 2 * weights
    for x in [*jax.tree.leaves(built.state.trainable), *moments]:
        whole = x.size > 10**6
        assert not (whole and x.sharding.is_fully_replicated)


@pytest.mark.parametrize(
    ("mesh", "devices", "training", "message"),
    [
        (Mesh(fsdp=8), 8, {"sequences": 12}, "12 rows cannot be split evenly over 8.*8 or 16 rows"),
        (Mesh(data=2, fsdp=2), 4, {"microbatches": 4}, "2 rows each.*4 microbatches.*of 1, 2,"),
    ],
)
def test_rows_that_do_not_divide_are_refused(mesh, devices, training, message):
    with pytest.raises(ShardingError, match=message):
        program(mesh, devices, **training)


def test_a_mesh_of_one_melts_away():
    """No manual region and no collective is left in the traced step; on two devices they are."""
    for devices in (1, 2):
        built = program(Mesh(fsdp=devices), devices)
        text = str(jax.make_jaxpr(built.step)(built.state, built.batch))
        for word in ("shard_map", "all_gather", "reduce_scatter", "psum"):
            assert (word in text) == (devices > 1), word
