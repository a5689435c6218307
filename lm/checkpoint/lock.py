"""One training at a time in a run's folder: a lock that dies with its process."""

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

from lm.errors import CheckpointError, ResourceError

LOCK = ".lock"


class Lock:
    """Holds a run's folder until it is released, or until the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be, and take it.

        Raises:
            CheckpointError: another process trains there.
            ResourceError: the folder cannot be made or written to.
        """
        self.folder = folder
        self._made = [p for p in (folder, *folder.parents) if not p.exists()]
        """Folders that were not there before, the innermost first."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            self._remove()
            raise cannot_write(folder, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 200, 0).decode("utf-8", "replace").strip()
            os.close(self._file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise cannot_write(folder, error) from error
            raise CheckpointError(
                f"{folder}: this run is being trained already, by {holder or 'another process'}. "
                "Wait for it, stop it (it saves first), or give this run another --name."
            ) from error
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise cannot_write(folder, error) from error

    def release(self) -> None:
        """Let go; a folder in which nothing came to be is taken away again."""
        with contextlib.suppress(OSError):
            if os.listdir(self.folder) == [LOCK]:
                (self.folder / LOCK).unlink()
        self._remove()
        with contextlib.suppress(OSError):
            os.close(self._file)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # not empty: something was made there
            for made in self._made:
                made.rmdir()


def cannot_write(folder: Path, error: OSError) -> ResourceError:
    """What to say of a run's folder that takes nothing."""
    return ResourceError(
        f"{folder}: the run's folder cannot be written to ({error.strerror or error}). Make room, "
        "mend its permissions, or keep runs elsewhere with --runs DIR."
    )
