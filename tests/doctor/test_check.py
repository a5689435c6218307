import threading
import time

import pytest

from lm.doctor.check import Check, LateError, Part, Patience, SkippedError, examine
from lm.doctor.exchange import Exchange
from lm.errors import ShardingError
from tests.doctor.conftest import Board


def part(measure, judge=lambda told: [Check("it", "ok", "fine")], seconds=5.0) -> Part:
    return Part("it", measure, judge, seconds, "Mend it.")


def found(*parts: Part, exchange: Exchange | None = None) -> list[Check]:
    return examine(parts, exchange or Exchange(), Patience(30.0))


def test_what_hangs_is_ended_told_and_does_not_keep_what_comes_after(monkeypatch):
    monkeypatch.setattr("lm.doctor.check.LEAST_SECONDS", 0.1)
    release = threading.Event()
    began = time.monotonic()
    late, after = found(part(release.wait, seconds=0.2), part(lambda: 1))
    assert time.monotonic() - began < 5
    assert (late.status, late.mend) == ("WRONG", "Mend it.")
    assert "did not end" in late.said
    assert after.status == "ok"
    release.set()


def test_the_time_of_all_is_bounded_and_what_hangs_is_remembered(monkeypatch):
    monkeypatch.setattr("lm.doctor.check.LEAST_SECONDS", 0.1)
    release, patience = threading.Event(), Patience(0.2)
    with pytest.raises(LateError):
        patience.run("it", release.wait, 60.0)
    assert patience.stuck == ["it"]
    release.set()


@pytest.mark.parametrize("where", ["measure", "judge"])
def test_a_check_that_fails_itself_is_a_line_and_no_traceback(where):
    def fail(*_):
        raise ZeroDivisionError("a planted fault\nwith more lines")

    (check,) = found(part(fail) if where == "measure" else part(lambda: 1, fail))
    assert check.status == "WRONG"
    assert check.said == "ZeroDivisionError: a planted fault"
    assert check.mend


def test_a_mistake_of_the_users_is_told_in_its_own_words():
    def refuse():
        raise ShardingError("mesh: 3 does not divide 8.\n Give 4.")

    (check,) = found(part(refuse))
    assert (check.status, check.mend) == ("WRONG", "mesh: 3 does not divide 8. Give 4.")


def test_what_cannot_be_looked_at_is_no_fault_of_its_own():
    def skip():
        raise SkippedError("no devices")

    (check,) = found(part(skip))
    assert (check.status, check.said) == ("warn", "not looked at: no devices")


def test_a_process_that_says_nothing_is_named(monkeypatch):
    monkeypatch.setattr("lm.doctor.check.LEAST_SECONDS", 0.1)
    exchange = Exchange(Board(), 0, 2)
    exchange.hosts = {1: "host-b"}
    (check,) = found(part(lambda: 1, seconds=0.1), exchange=exchange)
    assert check.status == "WRONG"
    assert "process 1 (host-b)" in check.said


def test_the_process_that_fails_is_named(together):
    def work(exchange):
        def measure():
            if exchange.rank == 1:
                raise OSError("a planted fault")

        exchange.hosts = {1: "host-b"}
        return examine([part(measure)], exchange, Patience(30.0))

    (check,) = together(work, 2)[0]
    assert check.said == "process 1 (host-b): OSError: a planted fault"
