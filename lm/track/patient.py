"""A file that is appended to, and outlives a disk that takes nothing for a time."""

import logging
import os
from pathlib import Path

from lm.errors import ResourceError

logger = logging.getLogger(__name__)

HELD_BYTES = 2**24
"""What is held back at most; some ten thousand steps."""


class PatientFile:
    """Appends to a file; what the disk does not take is held back, in order, until it does."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is made if need be.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = path
        self._held = b""
        self._told = False
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._file is None

    def write(self, text: str | bytes) -> None:
        """Append, or hold back; the first failure is told as a warning.

        Raises:
            ResourceError: more is held back than is reasonable.
        """
        self._held += text.encode() if isinstance(text, str) else text
        error = self._try(sync=False)
        if error is not None and len(self._held) > HELD_BYTES:
            raise self._refused(error)

    def flush(self) -> None:
        """Return once all is on the disk, if it takes anything."""
        self._try(sync=True)

    def close(self) -> None:
        """Write what was held back and close the file; a second time does nothing.

        Raises:
            ResourceError: the disk still takes nothing.
        """
        if self._file is None:
            return
        error = self._try(sync=True)
        os.close(self._file)
        self._file = None
        if error is not None:
            raise self._refused(error)

    def _try(self, *, sync: bool) -> OSError | None:
        """Write what is held back; what kept it from being written, if anything."""
        if self._file is None:
            raise ValueError(f"{self.path}: closed")
        try:
            while self._held:  # a disk that is nearly full takes a part
                self._held = self._held[os.write(self._file, self._held) :]
            if sync:
                os.fsync(self._file)
        except OSError as error:
            if not self._told:
                logger.warning(
                    "%s: cannot be written now (%s). Training goes on; its lines are kept until "
                    "the disk takes them.", self.path, error.strerror or error,
                )  # fmt: skip
            self._told = True
            return error
        self._told = False
        return None

    def _refused(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"{self.path}: cannot be written ({error.strerror or error}). Free some disk or choose "
            "another folder with --runs; the run goes on from its last checkpoint."
        )
