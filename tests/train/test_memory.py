"""How much a device needs and has."""

from types import SimpleNamespace

import jax
import pytest

from lm.errors import ResourceError
from lm.train import memory
from lm.train.memory import bytes_on_device, compiled_bytes, device_memory, refuse_beyond


def test_a_split_array_weighs_its_part():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.NamedSharding(mesh, jax.P(None, "x"))
    assert bytes_on_device(jax.ShapeDtypeStruct((6, 16), "float32", sharding=where)) == 48
    assert bytes_on_device(jax.ShapeDtypeStruct((6, 16), "bfloat16")) == 192
    assert bytes_on_device(jax.eval_shape(lambda: jax.random.key(0))) == 8


def test_a_donated_argument_is_counted_once():
    x = jax.ShapeDtypeStruct((256, 1024), "float32")
    kept = compiled_bytes(jax.jit(lambda x: x + 1).lower(x).compile())
    given = compiled_bytes(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert kept is not None
    assert given is not None
    assert kept - given == 2**20


def gpu(process: int) -> SimpleNamespace:
    """A device of 1 GiB that answers its own process alone."""

    def stats():
        assert process == 0
        return {"bytes_limit": 2**30}

    return SimpleNamespace(memory_stats=stats, platform="gpu", process_index=process)


def test_devices_of_other_processes_are_not_asked():
    assert device_memory([gpu(1), gpu(1), gpu(0)]) == 2**30
    assert device_memory([gpu(1)]) is None


def test_what_does_not_fit_is_refused_with_both_figures():
    devices = [gpu(0)]
    assert device_memory(devices) == 2**30
    refuse_beyond(2**30, devices, "x")
    with pytest.raises(ResourceError, match=r"the state need 1\.50 GiB.*a device has 1\.00 GiB"):
        refuse_beyond(3 * 2**29, devices, "the state")


def test_devices_of_one_machine_share_what_it_has(monkeypatch, tmp_path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 99 kB\nMemAvailable:    8192 kB\n")
    monkeypatch.setattr(memory, "Path", lambda _: told)
    assert device_memory(jax.devices()) == 2**20
    assert device_memory(jax.devices()[:2]) == 4 * 2**20
    told.unlink()
    assert device_memory(jax.devices()) is None
