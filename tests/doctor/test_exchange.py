import time

import pytest

from lm.doctor.exchange import Exchange
from tests.doctor.conftest import Board


def test_process_0_hears_all_and_all_hear_process_0(together):
    gave = together(
        lambda x: (x.gather("a", x.rank * 10, 5.0), x.announce("b", f"from {x.rank}", 5.0)), 3
    )
    assert gave[0] == ({0: 0, 1: 10, 2: 20}, "from 0")
    assert gave[1] == ({1: 10}, "from 0")
    assert gave[2] == ({2: 20}, "from 0")


def test_alone_there_is_nobody_to_wait_for():
    alone = Exchange()
    assert alone.gather("a", 1, 0.0) == {0: 1}
    assert alone.announce("b", [2], 0.0) == [2]
    assert alone.clocks(0.0) == {}


def test_who_is_silent_is_waited_for_once():
    first = Exchange(Board(), 0, 3)
    assert first.gather("a", "x", 0.3) == {0: "x", 1: None, 2: None}
    began = time.monotonic()
    assert first.gather("b", "x", 10.0) == {0: "x", 1: None, 2: None}
    assert time.monotonic() - began < 1
    assert Exchange(Board(), 1, 3).announce("c", None, 0.1) is None


def test_a_clock_that_is_ahead_is_measured_to_within_what_is_told(together):
    clocks = [time.time, lambda: time.time() + 2.5, lambda: time.time() - 0.75]
    offsets = together(lambda x: x.clocks(5.0), 3, clock=clocks)[0]
    for rank, planted in ((1, 2.5), (2, -0.75)):
        offset, within = offsets[rank]
        assert abs(offset - planted) <= within + 1e-6
        assert within < 0.5


def test_a_clock_that_is_not_told_is_named():
    with pytest.raises(TimeoutError, match="process 1"):
        Exchange(Board(), 0, 2).clocks(0.1)


def test_names_are_with_hosts_and_do_not_fill_the_screen():
    exchange = Exchange(Board(), 0, 9)
    exchange.hosts = {1: "b"}
    assert exchange.names([2, 1]) == "process 1 (b), process 2"
    assert exchange.names(range(9)).endswith("and 5 more")
