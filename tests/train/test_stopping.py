"""A first signal asks, a second ends the process, even where its main thread hears nothing."""

import signal
import subprocess
import sys

import pytest

from lm.train.stopping import Stop, needed, signals

DEAF = """
import ctypes, os, signal, sys, time
from lm.train.stopping import Stop, signals

def leave(text, code):
    os._exit(code)

with signals(Stop(lambda reason: print(reason, flush=True)), leave):
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).sleep(1000)  # C code: no Python handler runs before it is over
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once_without_a_traceback(number):
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert said == f"lm: stopped at once by {number.name}; the checkpoints are as they were.\n"


def test_only_the_first_reason_counts_and_handlers_are_as_before_afterwards():
    told: list[str] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = Stop(told.append)
    with signals(stop, lambda text, code: None):
        stop.ask("the time is up")
        stop.ask("preemption")
    assert told == ["the time is up"] == [stop.reason]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_time_for_a_stop_grows_with_saves_and_steps():
    first = needed(None, 10**9, 1.0)
    assert first > 10
    assert needed(2.0, 10**9, 1.0) < first
    assert needed(60.0, 10**9, 1.0) >= 90
    assert needed(2.0, 10**9, 30.0) - needed(2.0, 10**9, 1.0) >= 2 * 29
