"""A mesh is as large as the devices, or the error says which would be."""

import itertools
import math
from dataclasses import dataclass

import jax
import pytest

from lm.errors import ConfigError, ShardingError
from lm.parallel.mesh import AXES, Mesh, axis_of, describe, factored, make_mesh, parts, size

DEVICES = jax.devices()


@pytest.mark.parametrize(
    ("mesh", "devices", "sizes"),
    [
        (Mesh(), 8, {"fsdp": 8}),
        (Mesh(), 1, {}),
        (Mesh(tensor=2), 8, {"fsdp": 4, "tensor": 2}),
        (Mesh(data=-1, fsdp=2), 8, {"data": 4, "fsdp": 2}),
        (Mesh(data=2, fsdp=2, tensor=2), 8, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_one_axis_may_take_what_the_others_leave(mesh, devices, sizes):
    made = make_mesh(mesh, DEVICES[:devices])
    assert dict(made.shape) == dict.fromkeys(AXES, 1) | sizes
    assert set(made.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        (Mesh(tensor=3), 8, "tensor=3 needs a multiple of 3 devices, and there are 8 devices.*"
                            "fit: tensor=1, tensor=2, tensor=4, tensor=8"),
        (Mesh(fsdp=4), 8, "fsdp=4 needs 4 devices, and there are 8 devices.*product is 8"),
        (Mesh(fsdp=2), 1, "fsdp=2 needs 2 devices, and there are 1 device here"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_the_devices_is_refused(mesh, devices, message):
    with pytest.raises(ShardingError, match=message):
        make_mesh(mesh, DEVICES[:devices])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 0}, "data=0.*sizes are 1 or more"),
        ({"data": -1}, "data=-1, fsdp=-1.*one axis may be -1"),
        ({"tensor": -2}, "tensor=-2"),
        ({"expert": 2}, "expert=2: no model of this version has experts"),
        ({"torus": (4, 0)}, "torus=.*positive sizes"),
    ],
)
def test_sizes_that_no_mesh_has_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        Mesh(**sizes)


def test_a_mesh_is_described_in_a_line():
    made = make_mesh(Mesh(data=2, tensor=2), DEVICES)
    assert describe(made) == "data 2, fsdp 2, tensor 2 on 8 x cpu"


@dataclass(frozen=True)
class Chip:
    """A TPU device as far as a mesh looks at it."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU"


def slice_of(*sizes, slices=1):
    places = itertools.product(range(slices), *(range(n) for n in sizes))
    return [Chip(i, tuple(at), slice_index=s) for i, (s, *at) in enumerate(places)]


def neighbours(mesh, part):
    """The devices of one group along a part of the JAX mesh."""
    first = [0] * mesh.devices.ndim
    first[mesh.axis_names.index(part)] = slice(None)
    return list(mesh.devices[tuple(first)])


@pytest.mark.parametrize(
    ("mesh", "chips", "made_of"),
    [
        (Mesh(), (16, 16, 1), {"fsdp_x": 16, "fsdp_y": 16}),
        (Mesh(tensor=4), (16, 16, 1), {"fsdp_x": 16, "fsdp_y": 4, "tensor": 4}),
        (Mesh(tensor=4), (4, 4, 4), {"fsdp_x": 4, "fsdp_y": 4, "tensor": 4}),
        (Mesh(), (8, 8, 8), {"fsdp_x": 8, "fsdp_y": 8, "fsdp_z": 8}),
        (Mesh(context=8, tensor=2), (4, 4, 8), {"tensor": 2}),
        (Mesh(data=8), (2, 4, 1), {"data_x": 2, "data_y": 4}),
    ],
)
def test_every_part_of_an_axis_lies_along_one_axis_of_the_torus(mesh, chips, made_of):
    devices = slice_of(*chips)
    made = make_mesh(mesh, devices)
    assert sorted(d.id for d in made.devices.ravel()) == [d.id for d in devices]
    assert made_of.items() <= dict(made.shape).items()
    for part in made.axis_names:
        group = neighbours(made, part)
        moved = [len({d.coords[dim] for d in group}) > 1 for dim in range(3)]
        assert sum(moved) == (made.shape[part] > 1), part
    for axis in AXES:
        wanted = getattr(mesh, axis)
        assert wanted in (-1, size(made, axis))
        assert all(axis_of(part) == axis for part in parts(made, axis))


def test_slices_stand_outside_and_are_never_split_in_silence():
    devices = slice_of(2, 2, 1, slices=2)
    made = make_mesh(Mesh(slices=2), devices)
    assert dict(made.shape)["slices"] == 2
    assert [d.slice_index for d in neighbours(made, "slices")] == [0, 1]
    with pytest.raises(ShardingError, match=r"are of 2 slices.*Set slices=2"):
        make_mesh(Mesh(), devices)
    with pytest.raises(ShardingError, match="all 4 devices are of one slice"):
        make_mesh(Mesh(slices=2), slice_of(2, 2, 1))


def test_a_torus_that_the_platform_does_not_tell_may_be_named():
    made = make_mesh(Mesh(torus=(4, 2)), DEVICES)
    assert (made.shape["fsdp_x"], made.shape["fsdp_y"]) == (4, 2)
    with pytest.raises(ShardingError, match=r"torus=\(4, 4\) has 16 places"):
        make_mesh(Mesh(torus=(4, 4)), DEVICES)


def test_factors_multiply_to_the_sizes_and_fill_the_torus():
    sizes = {"data": 2, "fsdp": 12, "tensor": 4}
    found = factored(sizes, (8, 12))
    assert {axis: math.prod(f) for axis, f in found.items()} == sizes
    assert [math.prod(f[dim] for f in found.values()) for dim in (0, 1)] == [8, 12]
    assert factored({"data": 4, "fsdp": 9}, (6, 6)) == {"data": (2, 2), "fsdp": (3, 3)}
    assert factored({"data": 3, "fsdp": 8}, (12, 2)) == {"data": (3, 1), "fsdp": (4, 2)}
