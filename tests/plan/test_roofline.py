"""Bounds by hand, from the chip's figures and the links that an axis really has."""

import pytest

from lm.plan.collectives import Traffic
from lm.plan.hardware import TPU7X, V5E, V5P
from lm.plan.memory import Shards
from lm.plan.roofline import UNKNOWN, Work, bound, links, memory_traffic

GB = 1e9


def traffic(axes, wire, *, overlapped=False):
    return Traffic("all-gather", axes, overlapped, 1, wire, wire, "")


def rate(axes, chip, mesh):
    return links(axes, chip, mesh).bytes_per_second


def test_a_whole_ring_sends_both_ways_and_a_line_one_way(tools):
    """v5e closes its dimensions at 16 only."""
    ring = tools.fake_mesh({"fsdp_x": 16, "fsdp_y": 16}, (16, 16))
    line = tools.fake_mesh({"fsdp_x": 8, "fsdp_y": 8}, (8, 8))
    assert rate(("fsdp_x",), V5E, ring) == 2 * 50 * GB
    assert rate(("fsdp_x",), V5E, line) == 50 * GB


def test_a_group_over_two_torus_axes_has_the_links_of_both(tools):
    mesh = tools.fake_mesh({"fsdp_x": 16, "fsdp_y": 16}, (16, 16))
    assert rate(("fsdp_x", "fsdp_y"), V5E, mesh) == 4 * 50 * GB


def test_groups_that_share_a_ring_share_its_links(tools):
    mesh = tools.fake_mesh({"fsdp": 16, "data": 4, "tensor": 4}, (16, 16))
    assert rate(("tensor",), V5E, mesh) == 50 * GB
    assert rate(("data",), V5E, mesh) == 2 * 50 * GB / 4


def test_three_dimensions_close_where_all_are_whole_cubes(tools):
    cube = tools.fake_mesh({"x": 4, "y": 4, "z": 4}, (4, 4, 4))
    part = tools.fake_mesh({"x": 2, "y": 4, "z": 4}, (2, 4, 4))
    assert rate(("y",), V5P, cube) == 2 * 100 * GB
    assert rate(("y",), V5P, part) == 100 * GB


def test_the_halves_of_a_chip_are_joined_faster_than_chips(tools):
    mesh = tools.fake_mesh({"fsdp": 64, "tensor": 2}, (4, 4, 4), halves=2)
    assert rate(("tensor",), TPU7X, mesh) == 6 * 100 * GB


def test_slices_talk_over_the_network(tools):
    mesh = tools.fake_mesh({"slices": 2, "fsdp": 16}, (4, 4), slices=2)
    way = links(("slices",), V5E, mesh)
    assert way.network
    assert way.bytes_per_second == 25e9 / 8
    assert not links(("fsdp",), V5E, mesh).network


def test_a_step_takes_its_slowest_part_and_all_that_blocks(tools):
    mesh = tools.fake_mesh({"x": 16, "y": 16}, (16, 16))
    work = Work(flops=197e12 * 256 * 0.2, recomputed_flops=197e12 * 256 * 0.1, hbm_bytes=81.9e9)
    sent = [
        traffic(("x",), 10e9, overlapped=True),
        traffic(("x",), 5e9),
        traffic(("y",), 1e9),
    ]
    found = bound(work, sent, V5E, mesh)
    assert found.compute == pytest.approx(0.3)
    assert found.hbm == pytest.approx(0.1)
    assert found.ici == pytest.approx(0.16)
    assert found.blocking == pytest.approx(0.06)
    assert found.step == pytest.approx(0.36)
    slow = bound(work, [traffic(("x",), 50e9, overlapped=True)], V5E, mesh)
    assert slow.step == pytest.approx(0.5)


def test_what_nobody_publishes_is_not_made_up(tools):
    mesh = tools.fake_mesh({"fsdp": 8})
    work = Work(1e12, 0.0, 1e9)
    assert bound(work, [], None, mesh) == UNKNOWN
    unread = bound(work, None, V5E, tools.fake_mesh({"fsdp": 16}, (4, 4)))
    assert unread.compute is not None
    assert unread.step is None


def test_memory_traffic_counts_passes_and_microbatches():
    held = Shards(10.0, 20.0, 10.0)
    once = memory_traffic(held, 100.0, 1000.0, 1, recomputes=False)
    assert once == 2 * 1000 + 2 * 100 + 2 * (10 + 10 + 20)
    assert memory_traffic(held, 100.0, 1000.0, 1, recomputes=True) - once == 1000
    assert memory_traffic(held, 100.0, 1000.0, 3, recomputes=False) - once == 2 * 2200
