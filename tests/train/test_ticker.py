"""A ticker goes on until it is closed, and bears with work that fails."""

import threading

from lm.train.ticker import Ticker


def test_it_works_again_and_again_and_a_last_time_when_closed():
    ticks, enough = [], threading.Event()

    def work() -> None:
        ticks.append(len(ticks))
        if len(ticks) >= 3:
            enough.set()

    ticker = Ticker("test", work, every=0.001)
    assert enough.wait(10)
    ticker.close()
    after = len(ticks)
    ticker.close()
    assert len(ticks) == after >= 4


def test_work_that_fails_is_told_of_once_and_done_again(caplog):
    ticks, enough = [], threading.Event()

    def work() -> None:
        ticks.append(1)
        if len(ticks) >= 3:
            enough.set()
        raise OSError("full")

    ticker = Ticker("heartbeat", work, every=0.001)
    assert enough.wait(10)
    ticker.close()
    assert caplog.text.count("heartbeat: full") == 1
