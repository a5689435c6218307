"""What a search chooses among."""

import math

from lm.layers.execution import KEPT, Execution
from lm.parallel.mesh import Mesh
from lm.plan.settings import SHARE, WIDEST, Keeping, Setting, keepings, meshes, settings
from lm.train.step import Training


def training(**changed):
    return Training(**{"steps": 1, "sequences": 256, "length": 2048, **changed})


def sizes(mesh):
    return mesh.data, mesh.fsdp, mesh.context, mesh.tensor


def test_every_mesh_fills_the_slice_and_keeps_what_is_not_chosen():
    found = list(meshes(Mesh(slices=2, torus=(4, 8)), 32, training()))
    assert len(found) == len(set(found)) > 10
    assert all(math.prod(sizes(m)) == 32 for m in found)
    assert all(m.slices == 2 and m.torus == (4, 8) for m in found)
    assert max(m.tensor for m in found) == WIDEST


def test_rows_are_shared_only_where_they_are_long_or_few():
    def shared(**changed):
        return {m.context for m in meshes(Mesh(), 64, training(**changed))} - {1}

    assert shared() == set()
    assert shared(length=16_384) == {2, 4, 8}
    assert shared(sequences=32, length=4096) == {2}
    assert all(16_384 // ways >= SHARE for ways in shared(length=16_384))


def test_the_batch_stays_unless_any_will_do():
    mesh, kept = Mesh(data=2, fsdp=4), [Keeping("block", ())]
    t = training(sequences=16)
    assert {s.sequences for s in settings([mesh], kept, t)} == {16}
    assert {s.sequences for s in settings([mesh], kept, t, any_batch=True)} == {8, 16, 32, 64}


def test_rows_divide_over_devices_and_pieces():
    t = training(sequences=24, microbatches=3)
    found = list(settings([Mesh(data=1, fsdp=4), Mesh(data=5, fsdp=1)], [Keeping("block", ())], t))
    assert {s.mesh.data for s in found} == {1}
    assert {s.microbatches for s in found} == {1, 2, 3}
    assert all(s.rows() == 6 for s in found)


def test_the_runs_own_way_to_recompute_comes_first_and_none_twice():
    own = Execution(remat="projections")
    found = keepings(own)
    assert found[0] == Keeping("projections", ())
    assert len(found) == len(set(found))
    assert Keeping("nothing", ()) in found


def test_what_the_host_keeps_is_not_kept_on_the_device():
    found = keepings(Execution(remat="block", offload=("qkv",)))
    assert all("qkv" not in k.save and k.remat == "block" for k in found)


def test_a_setting_is_told_as_on_the_command_line():
    (one,) = settings(
        [Mesh(data=2, fsdp=4)], [Keeping("block", ("qkv", "up"))], training(sequences=8)
    )
    assert one.values["parallel.mesh.fsdp"] == "4"
    assert one.values["execution.save"] == "qkv up"
    assert one.values["training.microbatches"] == "1"


def test_an_mlp_is_whole_where_its_inner_products_are_kept():
    """In pieces it computes them again, and an execution that keeps them too is refused."""
    for keeping in keepings(Execution(remat="block", mlp_pieces=2)):
        setting = Setting(Mesh(), keeping, 1, 256)
        kept = {*KEPT[keeping.remat], *keeping.save} & {"gate", "up"}
        assert (setting.values.get("execution.mlp_pieces") == "1") == bool(kept)
