"""Several processes without processes: threads that talk through a dictionary."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lm.doctor.exchange import Exchange


class Board:
    """What JAX's coordinator does for its clients."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            if key in self.values:
                raise RuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1e3):
                raise RuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.values[key]


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """Runs a function of an exchange as so many processes at once; what each gave."""

    def run(work: Callable[[Exchange], Any], count: int, **settings: Any) -> list[Any]:
        board, gave = Board(), [None] * count

        def one(rank: int) -> None:
            own = {k: v[rank] for k, v in settings.items()}
            gave[rank] = work(Exchange(board, rank, count, **own))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return gave

    return run
