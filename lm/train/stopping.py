"""Being asked to stop: by a signal, by the platform, or because the time is up."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FIRST_SAVE = 100e6
"""Bytes a second: how fast a save is thought to be before one was seen."""
LAPS = 3
"""Steps that may pass until all processes have agreed to stop."""
REST = 8.0
"""Seconds for what comes after the last save: the report, closing files, leaving the others."""


class Stop:
    """Whether this process was asked to stop, and by what; any thread may ask."""

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        """``say`` is told of the first reason."""
        self._say = say
        self.reason: str | None = None

    def ask(self, reason: str) -> None:
        """Ask; a second time changes nothing."""
        if self.reason is None:
            self.reason = reason
            self._say(reason)


@contextlib.contextmanager
def signals(stop: Stop, leave: Callable[[str, int], Any]) -> Iterator[None]:
    """Within it SIGINT and SIGTERM ask to stop; the second of them ends the process at once.

    ``leave`` does that, told why and the exit code.

    They are read by a thread of its own: the main one may hang in a step or in a file system, and
    Python would not hear of a second signal before that ends.
    """
    ears, mouth = socket.socketpair()
    mouth.settimeout(0.0)

    def listen() -> None:
        while number := ears.recv(1):
            name, code = signal.Signals(number[0]).name, 128 + number[0]
            if number[0] not in SIGNALS:
                continue
            if stop.reason is not None:
                text = f"stopped at once by {name}; the checkpoints are as they were."
                os.write(2, f"lm: {text}\n".encode())
                leave(text, code)
            stop.ask(name)

    def heard(number: int, frame: FrameType | None) -> None:
        """Nothing: the thread has been told already."""

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    before = [(number, signal.signal(number, heard)) for number in SIGNALS]
    told = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(told)
        mouth.close()
        thread.join()
        ears.close()


def needed(save_seconds: float | None, save_bytes: int, step_seconds: float) -> float:
    """The seconds that a stop takes, with half of the save's as a reserve.

    Args:
        save_seconds: what the last save took until it was whole; None: none was made.
        save_bytes: what this process saves.
        step_seconds: what a step takes.
    """
    save = save_bytes / FIRST_SAVE if save_seconds is None else save_seconds
    return 1.5 * save + LAPS * step_seconds + REST
