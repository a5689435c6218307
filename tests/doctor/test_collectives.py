from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import lax

from lm.doctor import collectives
from lm.doctor.exchange import Exchange
from lm.parallel.mesh import AXES, Mesh, make_mesh


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return make_mesh(Mesh(data=2, fsdp=2, tensor=2), jax.devices())


def names(ranks) -> str:
    return ", ".join(f"process {rank}" for rank in sorted(ranks))


def told(**changed) -> dict:
    rate = {"median": 40e9, "least": 30e9, "most": 50e9}
    kinds = ("all-reduce", "all-gather", "reduce-scatter")
    usual = {
        "size": 4,
        "wrong": [],
        "payload_bytes": 2**28,
        "rates": dict.fromkeys(kinds, rate),
        "published": None,
    }
    return {"fsdp": {**usual, **changed}}


def judged(*every: dict):
    return list(collectives.judge(dict(enumerate(every)), names))


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_sums_are_right_on_every_axis(mesh, axis):
    assert collectives.wrong_on(mesh, axis) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("all_reduce", "all-reduce"),
        ("all_gather", "all-gather"),
        ("reduce_scatter", "reduce-scatter"),
    ],
)
def test_one_wrong_number_on_one_device_of_one_axis_is_found(mesh, monkeypatch, name, kind):
    right = getattr(collectives, name)

    def planted(x, axis):
        y = right(x, axis)
        if axis != "fsdp" or x.dtype != "float32":
            return y
        here = lax.axis_index(("data", "fsdp", "tensor")) == 3
        return y.at[5].add(here.astype(y.dtype))

    monkeypatch.setattr(collectives, name, planted)
    assert collectives.wrong_on(mesh, "fsdp") == [f"{kind} of float32"]
    assert collectives.wrong_on(mesh, "data") == []


def test_a_device_that_is_left_out_of_a_sum_is_found(mesh, monkeypatch):
    def without_first(x, axis):
        return lax.psum(x * (lax.axis_index(axis) > 0).astype(x.dtype), axis)

    monkeypatch.setattr(collectives, "all_reduce", without_first)
    assert set(collectives.wrong_on(mesh, "tensor")) == {
        "all-reduce of int32",
        "all-reduce of float32",
    }


def test_every_axis_that_splits_is_timed(mesh, monkeypatch):
    monkeypatch.setitem(collectives.PAYLOAD, "cpu", 2**14)
    found = collectives.facts(mesh, AXES, Exchange(), 2.0)
    assert list(found) == ["data", "fsdp", "tensor"]
    for axis in found.values():
        assert axis["published"] is None
        assert set(axis["rates"]) == {"all-reduce", "all-gather", "reduce-scatter"}
        for rate in axis["rates"].values():
            assert 0 < rate["least"] <= rate["median"] <= rate["most"]
    assert [check.status for check in judged(found)] == ["ok"] * 3


def test_rates_are_bus_bandwidths(mesh, monkeypatch):
    """Of a call that takes a second: 2 (n - 1) / n of the payload, or half of that."""
    monkeypatch.setattr(collectives, "_timed", lambda run, x: 1.0)
    rates = collectives.rates(
        make_mesh(Mesh(fsdp=8), jax.devices()), "fsdp", 2**20, Exchange(), 9.0
    )
    assert rates["all-reduce"].median == pytest.approx(2 * 7 / 8 * 2**20)
    assert rates["all-gather"].median == pytest.approx(7 / 8 * 2**20)
    assert rates["reduce-scatter"].median == pytest.approx(7 / 8 * 2**20)


def test_a_wrong_sum_names_the_axis_and_who_saw_it():
    (check,) = judged(told(), told(wrong=["all-reduce of int32"]), told())
    assert (check.name, check.status) == ("fsdp", "WRONG")
    assert "all-reduce of int32, seen by process 1" in check.said
    assert check.mend


def test_a_slow_interconnect_is_a_warning_against_what_is_published():
    (slow,) = judged(told(published=100e9))
    assert (slow.status, slow.figures["share_of_published"]) == ("warn", pytest.approx(0.4))
    (fast,) = judged(told(published=50e9))
    assert fast.status == "ok"
    assert "80 % of 50 published" in fast.said


def test_one_device_has_nothing_to_send():
    alone = make_mesh(Mesh(), jax.devices()[:1])
    (check,) = judged(collectives.facts(alone, AXES, Exchange(), 1.0))
    assert check.status == "ok"


@pytest.mark.parametrize(("size", "rate"), [(2, 100e9), (4, 200e9)], ids=["line", "ring"])
def test_a_ring_of_tpus_sends_both_ways_and_a_line_one_way(size, rate):
    grid = np.empty((size, size, size), object)
    for place in np.ndindex(grid.shape):
        grid[place] = SimpleNamespace(device_kind="TPU v5p", coords=place, slice_index=0)
    mesh = SimpleNamespace(devices=grid, axis_names=("data", "fsdp", "tensor"))
    assert collectives.published(mesh, "fsdp") == rate


def test_what_is_no_tpu_has_no_published_rate(mesh):
    assert collectives.published(mesh, "fsdp") is None
