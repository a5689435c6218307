"""What the processes of a run tell each other about its checkpoints.

Through the coordination service that ``jax.distributed`` keeps, not through a collective on the
devices: so a thread beside training may speak too, and a process whose save failed can say so
instead of not coming.  A service that loses a process says so on all others, which ends a wait.
"""

import collections
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax._src import distributed  # the service has no public name; Orbax reaches it so too

WAIT_SECONDS = 1200
"""The longest wait for the others: storage may be slow, but not for ever."""
LOOKS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between looks at storage that shows different things to different hosts: some show a new
file late."""

_lock = threading.Lock()
_spoken: collections.Counter[str] = collections.Counter()


class View(NamedTuple):
    """What one process sees of the storage."""

    process: str
    """Its rank and host, in words."""
    seen: Any


def tell(channel: str, value: Any) -> Any:
    """What process 0 gives as ``value``, on every process.

    Args:
        channel: a name; every process calls with the same ones in the same order.
        value: plain JSON; that of the other processes is not looked at.
    """
    if jax.process_count() == 1:
        return value
    key, _ = _next(channel)
    if jax.process_index() == 0:
        _client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_client().blocking_key_value_get(key, WAIT_SECONDS * 1000))


def exchange(channel: str, value: Any) -> list[Any]:
    """The ``value`` of every process in order of rank, on every process.

    Args:
        channel: as for ``tell``.
        value: plain JSON, at most some hundred kilobytes.
    """
    if jax.process_count() == 1:
        return [value]
    key, before = _next(channel)
    client, rank = _client(), jax.process_index()
    if rank != 0:
        client.key_value_set(f"{key}/{rank}", json.dumps(value))
        return json.loads(client.blocking_key_value_get(f"{key}/all", WAIT_SECONDS * 1000))
    others = [
        json.loads(client.blocking_key_value_get(f"{key}/{other}", WAIT_SECONDS * 1000))
        for other in range(1, jax.process_count())
    ]
    client.key_value_delete(before)  # who speaks again has read what was said before
    client.key_value_set(f"{key}/all", json.dumps([value, *others]))
    return [value, *others]


def look(channel: str, see: Callable[[], Any], enough: Callable[[list[View]], bool]) -> list[View]:
    """What every process sees, in order of rank; looked at again for a while if not ``enough``."""

    def views() -> list[View]:
        told = exchange(channel, [socket.gethostname(), see()])
        return [View(f"process {rank} on {host}", seen) for rank, (host, seen) in enumerate(told)]

    found = views()
    for pause in LOOKS:
        if enough(found):
            break
        time.sleep(pause)
        found = views()
    return found


def _next(channel: str) -> tuple[str, str]:
    """The key of what is said next on a channel, and of what was said before it."""
    with _lock:
        _spoken[channel] += 1
        number = _spoken[channel]
    return f"lm/{channel}/{number}", f"lm/{channel}/{number - 1}"


def _client() -> Any:
    return distributed.global_state.client
