"""The processes of a run watch each other: who dies, freezes or gives up ends the others at once.

JAX watches too, but its last word is a stack of C++, and a process that waits for a dead one in a
collective, a barrier or a background save is not ended by an exception.  Here every process holds
a connection to process 0, on which both say each second that they live.  A broken connection, or
one that is silent for ``SILENCE`` seconds, ends all processes with a paragraph that names the rank
and the host, whatever their other threads wait for.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

SILENCE = 15
"""Seconds; longer than a loaded machine keeps a thread waiting."""
GRACE = 3.0
"""Seconds for what was said last to arrive."""
LOST = 1
"""Exit code where another process was lost."""


class Door(NamedTuple):
    """Where process 0 is found by the others."""

    hosts: tuple[str, ...]
    """Names and addresses, to be tried in this order."""
    port: int
    name: str
    """Of its host, for people."""
    token: str
    """Keeps out who does not belong to the run."""


class _Line:
    """One end of a connection: what came, and for how many ticks nothing came."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.who: dict[str, Any] | None = None
        self.silent = 0
        self.left = False
        self._rest = b""

    def say(self, message: dict[str, Any] | None = None) -> None:
        """Send a message, or only a sign of life; a broken connection is noticed by who reads."""
        with contextlib.suppress(OSError):
            self.socket.send((json.dumps(message) if message else "").encode() + b"\n")

    def hear(self) -> list[dict[str, Any]] | None:
        """What has come; None: the connection is broken."""
        try:
            raw = self.socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not raw:
            return None
        self.silent = 0
        *lines, self._rest = (self._rest + raw).split(b"\n")
        return [json.loads(line) for line in lines if line]


class Peers:
    """This process's watch over the others."""

    def __init__(
        self,
        rank: int,
        count: int,
        end: Callable[[str, int], Any] | None = None,
        *,
        silence: int = SILENCE,
    ) -> None:
        """Nothing is watched yet.

        Args:
            rank: of this process.
            count: of the processes.
            end: told why, and the exit code, when another process is gone; ends this one if None.
            silence: seconds after which who says nothing is frozen.
        """
        self.rank, self.count, self.silence = rank, count, silence
        self._end = end or end_now
        self._selector = selectors.DefaultSelector()
        self._server: socket.socket | None = None
        self._lines: list[_Line] = []
        self._over = threading.Event()
        self._leaving = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def open_door(self) -> Door:
        """Process 0 lets the others in; they are given what this returns.

        Raises:
            OSError: no port can be had.
        """
        self._server = socket.create_server(("", 0), backlog=4096)
        self._server.settimeout(0.0)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._token = secrets.token_hex(8)
        self._start()
        port = self._server.getsockname()[1]
        return Door(own_addresses(), port, socket.gethostname(), self._token)

    def enter(self, door: Door, first: Sequence[str] = (), seconds: float = 3.0) -> bool:
        """Another process connects to process 0; whether it could.

        Args:
            door: what process 0 told.
            first: names of its host to try first.
            seconds: to wait for each name.
        """
        for host in dict.fromkeys((*first, *door.hosts)):
            try:
                connection = socket.create_connection((host, door.port), timeout=seconds)
            except OSError:
                continue
            connection.settimeout(0.0)
            line = _Line(connection)
            line.who = {"rank": 0, "host": door.name}
            line.say({"token": door.token, "rank": self.rank, "host": socket.gethostname()})
            self._admit(line)
            self._start()
            return True
        return False

    def close(self) -> None:
        """Leave in good order; the others stop watching this process."""
        self._over.set()
        with self._lock:
            for line in self._lines:
                line.say({"bye": True})

    def leave(self, text: str, code: int) -> NoReturn:
        """End this process and all others; ``text`` and ``code`` are their last word as well."""
        self._leaving = True  # what is heard from here on is no news
        self._spread(f"{self._me()} ended: {text}", code)
        flush()
        os._exit(code)

    def _me(self) -> str:
        return f"process {self.rank} of {self.count} on {socket.gethostname()}"

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def _admit(self, line: _Line) -> None:
        with self._lock:
            self._lines.append(line)
        self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _watch(self) -> None:
        tick = time.monotonic() + 1
        while not self._over.is_set():
            for key, _ in self._selector.select(max(0.0, tick - time.monotonic())):
                if isinstance(key.data, _Line):
                    self._hear(key.data)
                elif self._server is not None:
                    self._accept(self._server)
            if time.monotonic() >= tick:
                # Its own ticks, not a clock: one that was itself stopped blames nobody.
                tick = time.monotonic() + 1
                self._tick()
        for line in list(self._lines):
            self._drop(line)
        if self._server is not None:
            self._server.close()
        self._selector.close()

    def _accept(self, server: socket.socket) -> None:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.settimeout(0.0)
        self._admit(_Line(connection))

    def _hear(self, line: _Line) -> None:
        messages = line.hear()
        if messages is None:
            self._drop(line)
            if line.who is not None and not line.left:
                self._lost(line.who, "its connection broke: it was killed, or it crashed")
            return
        for message in messages:
            if line.who is None:
                if message.get("token") != self._token:
                    self._drop(line)
                    return
                line.who = message
            elif "bye" in message:
                line.left = True
            elif "gone" in message:
                self._give_up(message["gone"], message["code"], but=line)

    def _tick(self) -> None:
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.say()
            line.silent += 1
            if line.silent > self.silence and not line.left:
                self._drop(line)
                if line.who is not None:
                    why = f"nothing was heard of it for {self.silence} s: frozen, or cut off"
                    self._lost(line.who, why)

    def _drop(self, line: _Line) -> None:
        with self._lock:
            self._lines.remove(line)
        self._selector.unregister(line.socket)
        line.socket.close()

    def _lost(self, who: dict[str, Any], why: str) -> None:
        text = (
            f"process {who['rank']} of {self.count} on {who['host']} is gone ({why}); no "
            "step can be made without it. Look at its last lines; the same command, started "
            "again everywhere, goes on from the last checkpoint."
        )
        self._give_up(text, LOST)

    def _give_up(self, text: str, code: int, but: _Line | None = None) -> None:
        if not self._leaving:
            self._spread(text, code, but=but)
            self._end(text, code)

    def _spread(self, text: str, code: int, but: _Line | None = None) -> None:
        with self._lock:
            lines = [line for line in self._lines if line is not but and not line.left]
        for line in lines:
            line.say({"gone": text, "code": code})
        if self.rank == 0 and lines:
            self._wait_for(lines)  # with process 0 goes JAX's coordinator, and takes them along

    def _wait_for(self, lines: list[_Line]) -> None:
        end = time.monotonic() + GRACE
        for line in lines:
            line.socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                while time.monotonic() < end and line.socket.recv(65536):
                    pass
            except OSError:
                pass


def end_now(text: str, code: int) -> NoReturn:
    """The last words of a process, whatever its other threads wait for."""
    flush()
    os.write(2, f"lm: {text}\n".encode())
    os._exit(code)


def flush(seconds: float = 1.0) -> None:
    """Write out what was printed, unless somebody holds the streams."""

    def work() -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


def own_addresses() -> tuple[str, ...]:
    """Names and addresses by which other hosts may find this one, the likeliest first."""
    name = socket.gethostname()
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET)]
    except OSError:
        found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; says which way out would be taken
            found.insert(0, probe.getsockname()[0])
        except OSError:
            pass
    return tuple(dict.fromkeys((*found, name, "127.0.0.1")))
