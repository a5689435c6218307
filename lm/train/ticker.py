"""A thread that does one thing again and again beside the training, and never stops it."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Ticker:
    """Calls a function at once and then every so often, until it is closed."""

    def __init__(self, name: str, work: Callable[[], None], every: float = 1.0) -> None:
        """Start; ``every`` in seconds."""
        self._work, self._every = work, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Do it a last time, and stop; a second time does nothing."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join(timeout=10)

    def _run(self) -> None:
        failed = False
        while True:
            over = self._over.is_set()
            try:
                self._work()
            except Exception as error:
                if not failed:  # once is enough to know
                    logger.warning("%s: %s", self._thread.name, error)
                failed = True
            if over:
                return
            self._over.wait(self._every)
