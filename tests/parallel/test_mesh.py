"""A mesh is as large as the devices, or the error says which would be."""

import jax
import pytest

from lm.errors import ConfigError, ShardingError
from lm.parallel.mesh import AXES, Mesh, describe, make_mesh

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
        ({"context": 2}, "context=2: this version splits data, fsdp and tensor"),
    ],
)
def test_sizes_that_no_mesh_has_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        Mesh(**sizes)


def test_a_mesh_is_described_in_a_line():
    made = make_mesh(Mesh(data=2, tensor=2), DEVICES)
    assert describe(made) == "data 2, fsdp 2, tensor 2 on 8 x cpu"
