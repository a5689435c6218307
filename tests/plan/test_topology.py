"""Devices of a slice that is not there."""

import importlib.util

import pytest

from lm.errors import ConfigError, ResourceError
from lm.plan import topology
from lm.plan.hardware import read_slice
from lm.plan.topology import devices_for

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[plan]'",
)


def test_processors_of_this_machine_are_devices_too():
    assert len(devices_for(read_slice("cpu:8"))) == 8
    assert len(devices_for(read_slice("cpu:2"))) == 2


def test_more_processors_than_jax_was_started_with_are_refused():
    with pytest.raises(ConfigError, match="has 8 here"):
        devices_for(read_slice("cpu:64"))


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"pip install -e '\.\[plan\]'"):
        devices_for(read_slice("v5e:4x4"))


def test_a_libtpu_that_refuses_is_quoted(monkeypatch):
    def refuse(**_):
        raise RuntimeError("INVALID_ARGUMENT: no such layout\nmore")

    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(ConfigError, match="libtpu refuses it: INVALID_ARGUMENT: no such layout"):
        devices_for(read_slice("v5e:4x4"))


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("words", "slices", "devices"),
    [("v4:2x2x1", 1, 4), ("v5e:4x4", 2, 32), ("v5p:2x2x2", 1, 8), ("v6e:4x4", 1, 16),
     ("tpu7x:2x2x1", 1, 8)],
)  # fmt: skip
def test_libtpu_describes_every_version(words, slices, devices):
    """A v4 chip is one device; a tpu7x chip is two."""
    assert len(devices_for(read_slice(words, slices))) == devices
