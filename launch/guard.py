"""Keeps a process group from outliving its supervisor, even one that was killed with -9.

The guard leads the group that every process of an attempt joins.  Its standard input is a pipe that
only the supervisor holds; when that closes, for whatever reason, the guard kills the group, itself
included.  A group has no race between starting a process and noting its number, and takes what the
processes started themselves with it.
"""

import os
import signal
import subprocess
import sys


def start() -> subprocess.Popen[bytes]:
    """A guard that is ready; its process id is the group's."""
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    assert guard.stdout is not None
    guard.stdout.read(1)
    return guard


def main() -> None:
    """Wait for the pipe to close, then kill the group."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b".")
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
