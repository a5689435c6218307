"""Words between the processes through JAX's coordinator: no device and no collective takes part.

So that what is wrong with devices, or with the processes' versions of everything, can be told.
"""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

from jax._src import distributed as joined

ROUNDS = 5
"""Times that a clock is asked; the quickest answer counts."""
AT_ONCE = 16
NAMED = 4
ROOM = "lm/doctor"


@runtime_checkable
class Client(Protocol):
    """The part of the coordinator's client that is used here."""

    def key_value_set(self, key: str, value: str, /) -> Any:
        """Leave a value under a key that nobody has used."""
        ...

    def blocking_key_value_get(self, key: str, milliseconds: int, /) -> str:
        """Wait for the value of a key."""
        ...


class Exchange:
    """What this process tells the others, and hears of them."""

    def __init__(
        self,
        client: Client | None = None,
        rank: int = 0,
        count: int = 1,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without a client there is one process, which hears itself; ``clock`` is the host's."""
        self.client, self.rank, self.count, self.clock = client, rank, count, clock
        self.hosts: dict[int, str] = {}
        """Rank -> host, as far as it is known."""
        self.silent: set[int] = set()
        """Who did not answer; nobody waits for them again."""

    def gather(self, key: str, value: Any, seconds: float) -> dict[int, Any]:
        """On process 0 what each has told, None for those who did not; elsewhere one's own."""
        if self.client is None:
            return {self.rank: value}
        if self.rank != 0:
            self.client.key_value_set(f"{ROOM}/{key}/{self.rank}", json.dumps(value))
            return {self.rank: value}
        end = time.monotonic() + seconds
        told = {0: value}
        for rank in range(1, self.count):
            wait = 0.0 if rank in self.silent else end - time.monotonic()
            told[rank] = self._get(f"{key}/{rank}", wait)
            if told[rank] is None:
                self.silent.add(rank)
        return told

    def announce(self, key: str, value: Any, seconds: float) -> Any:
        """Everywhere what process 0 gives; None where it says nothing in time."""
        if self.client is None:
            return value
        if self.rank == 0:
            self.client.key_value_set(f"{ROOM}/{key}", json.dumps([value]))
            return value
        told = self._get(key, seconds)
        return None if told is None else told[0]

    def clocks(self, seconds: float) -> dict[int, tuple[float, float]]:
        """On process 0: rank -> (seconds that its clock is ahead, at most how wrong that is).

        Process 0 notes its time, asks, and notes it again when the answer is there: the other's
        clock was read between the two, at the middle to within half of the time between.

        Raises:
            TimeoutError: some did not answer.
        """
        if self.client is None:
            return {}
        if self.rank != 0:
            for turn in range(ROUNDS):
                if self._get(f"clock/{self.rank}/{turn}", seconds) is None:
                    break
                self.client.key_value_set(
                    f"{ROOM}/clock/{self.rank}/{turn}/told", json.dumps(self.clock())
                )
            return {}
        others = [rank for rank in range(1, self.count) if rank not in self.silent]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            offsets = pool.map(lambda rank: self._clock(rank, seconds), others)
            found = dict(zip(others, offsets, strict=True))
        if silent := [rank for rank, offset in found.items() if offset is None]:
            raise TimeoutError(f"{self.names(silent)} did not tell the time")
        return {rank: offset for rank, offset in found.items() if offset is not None}

    def names(self, ranks: Iterable[int]) -> str:
        """``process 3 (host-b), process 4 (host-b) and 2 more``."""
        chosen = sorted(ranks)
        told = [f"process {r}" + (f" ({self.hosts[r]})" if r in self.hosts else "") for r in chosen]
        more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
        return ", ".join(told[:NAMED]) + more

    def _clock(self, rank: int, seconds: float) -> tuple[float, float] | None:
        best: tuple[float, float] | None = None
        for turn in range(ROUNDS):
            before = self.clock()
            if self.client is not None:
                self.client.key_value_set(f"{ROOM}/clock/{rank}/{turn}", "0")
            told = self._get(f"clock/{rank}/{turn}/told", seconds)
            after = self.clock()
            if told is None:
                break
            found = (told - (before + after) / 2, (after - before) / 2)
            best = found if best is None else min(best, found, key=lambda pair: pair[1])
        return best

    def _get(self, key: str, seconds: float) -> Any:
        if self.client is None:
            return None
        try:
            wait = max(1, round(1e3 * seconds))
            return json.loads(self.client.blocking_key_value_get(f"{ROOM}/{key}", wait))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise


def between_all() -> Exchange:
    """The exchange between the processes that ``lm.parallel.distributed`` has joined."""
    state = joined.global_state
    if state.client is None:
        return Exchange()
    return Exchange(state.client, state.process_id or 0, state.num_processes or 1)
