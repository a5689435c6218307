"""What Orbax leaves behind when an operation fails, kept from the user's terminal.

A failure reaches its caller as an exception, of which we make one ``CheckpointError``.  Besides,
Orbax logs it with a traceback, and abandons the reads and writes that were still under way: each
of them then reports itself, pages long, as an exception that nobody could catch.
"""

import logging
import sys
import traceback
from typing import Any

from absl import logging as absl_logging


def hush_orbax() -> None:
    """Drop Orbax's logs and its abandoned tasks' last words; anything else goes its way."""
    for log in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        if _not_orbax not in log.filters:
            log.addFilter(_not_orbax)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


def _not_orbax(entry: logging.LogRecord) -> bool:
    if entry.name != "asyncio":
        return "orbax" not in entry.pathname
    # asyncio names the forgotten task, and with it the file that it is of; a future that gathers
    # tasks, or that TensorStore answers to, is known only by its error, which names the database.
    said = entry.getMessage().lower()
    if entry.exc_info and entry.exc_info[2]:
        said += "".join(traceback.format_tb(entry.exc_info[2]))
    return not any(name in said for name in ("orbax", "tensorstore", "ocdbt"))


class _Hook:
    """``sys.unraisablehook`` with an ear for what is not worth telling."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        abandoned = "orbax" in getattr(code, "co_filename", "")
        # The native threads of TensorStore answer to an event loop that Orbax closed.
        late = isinstance(unraisable.exc_value, RuntimeError) and unraisable.object is None
        if not abandoned and not (late and str(unraisable.exc_value) == "Event loop is closed"):
            self._before(unraisable)
