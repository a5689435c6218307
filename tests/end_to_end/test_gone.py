"""One of several processes dies or freezes in the middle of training: all the others end soon."""

import signal
import socket
import time

import pytest

from tests.end_to_end.conftest import begin, wait_for_step

pytestmark = [pytest.mark.multiprocess, pytest.mark.faults, pytest.mark.slow]
LIMIT = 30.0
"""Seconds in which an attempt is over; the launcher's own watch comes on top."""


CASES = [(2, rank) for rank in range(2)] + [(4, rank) for rank in range(4)]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize(("processes", "victim"), CASES)
def test_the_death_or_freeze_of_any_process_ends_all_and_is_told_by_name(
    processes, victim, sign, config, tmp_path
):
    words = ["train", config(), "--runs", tmp_path / "runs", "--training.steps", "100000"]
    words += ["--evaluation.every", "100000", "--saving.every", "100000"]
    joined = begin(words, tmp_path, processes)
    try:
        wait_for_step(joined, tmp_path, 3)
        joined[victim].send_signal(sign)
        sent = time.monotonic()
        others = [process for process in joined if process is not joined[victim]]
        said = [process.communicate(timeout=2 * LIMIT)[0] for process in others]
        seconds = time.monotonic() - sent
        codes = [process.returncode for process in others]
        print(f"{sign.name} of {victim} of {processes}: over in {seconds:.1f} s, codes {codes}")
        assert seconds < LIMIT
        named = f"process {victim} of {processes} on {socket.gethostname()} is gone"
        # Where process 0 dies, JAX's own abort may be first: then its words stand in its log.
        assert all(code == 1 or (victim == 0 and code == -signal.SIGABRT) for code in codes), said
        for code, text in zip(codes, said, strict=True):
            assert code != 1 or named in text.splitlines()[-1], text
    finally:
        for process in joined:
            process.kill()
            process.communicate()
