"""Processes that watch each other, here as threads with ends of their own."""

import socket
import sys
import threading
import time

import pytest

from lm.parallel.peers import LOST, Peers, own_addresses


class Told:
    """What a process would have said last."""

    def __init__(self) -> None:
        self.event, self.words = threading.Event(), []

    def __call__(self, text: str, code: int) -> None:
        self.words.append((text, code))
        self.event.set()


@pytest.fixture
def together():
    """Makes so many that watch each other; they leave at the end."""
    made: list[Peers] = []

    def make(count: int, silence: int = 60) -> list[tuple[Peers, Told]]:
        ends = [Told() for _ in range(count)]
        made.extend(Peers(rank, count, ends[rank], silence=silence) for rank in range(count))
        door = made[0].open_door()
        for peers in made[1:]:
            assert peers.enter(door, ["127.0.0.1"])
        end = time.monotonic() + 10
        while sum(line.who is not None for line in made[0]._lines) < count - 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        return list(zip(made, ends, strict=True))

    yield make
    for peers in made:
        end(peers)


def end(peers: Peers) -> None:
    peers.close()
    assert peers._thread is not None
    peers._thread.join(10)
    assert not peers._thread.is_alive()


def crash(peers: Peers) -> None:
    """As if the process were killed: its connections break, and nothing more is said."""
    peers._leaving = True
    for line in list(peers._lines):
        line.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_all_others_hear_who_died(victim, together):
    made = together(3)
    crash(made[victim][0])
    for rank, (_, told) in enumerate(made):
        if rank != victim:
            assert told.event.wait(10)
            text, code = told.words[0]
            assert code == LOST
            assert text.startswith(f"process {victim} of 3 on {socket.gethostname()} is gone")
            assert "killed" in text


@pytest.mark.parametrize("victim", [0, 1])
def test_who_is_silent_is_frozen(victim, together):
    made = together(2, silence=2)
    for line in made[victim][0]._lines:
        line.say = lambda message=None: None  # its connection stays
    began = time.monotonic()
    told = made[1 - victim][1]
    assert told.event.wait(10)
    assert time.monotonic() - began > 1.5
    assert f"process {victim} of 2" in told.words[0][0]
    assert "frozen" in told.words[0][0]


def test_who_leaves_in_good_order_is_not_missed(together):
    made = together(3, silence=1)
    for peers, _ in made[1:]:
        end(peers)
    assert not made[0][1].event.wait(2.5)


@pytest.mark.parametrize("code", [1, 2, 143])
def test_who_gives_up_takes_the_others_along_with_its_words_and_code(code, together, monkeypatch):
    monkeypatch.setattr("os._exit", sys.exit)
    made = together(3)
    with pytest.raises(SystemExit, match=str(code)):
        made[2][0].leave("CorpusError: no such file", code)
    for _, told in made[:2]:
        assert told.event.wait(10)
        assert told.words[0] == (
            f"process 2 of 3 on {socket.gethostname()} ended: CorpusError: no such file",
            code,
        )


def test_a_stranger_at_the_door_is_sent_away(together):
    made = together(2)
    port = made[0][0]._server.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
        stranger.sendall(b'{"token": "wrong", "rank": 1, "host": "h"}\n')
        assert stranger.recv(1000).strip() == b""
    assert not made[0][1].event.wait(0.5)


def test_a_door_that_nobody_opens_is_no_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    opened = Peers(0, 2, Told())
    door = opened.open_door()
    end(opened)
    assert not Peers(1, 2, Told()).enter(door._replace(port=port, hosts=("127.0.0.1",)))


def test_a_host_knows_a_name_or_address_of_its_own():
    assert "127.0.0.1" in own_addresses()
    assert len(own_addresses()) > 1
