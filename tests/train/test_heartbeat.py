"""A sign of life is one small file, never seen half written."""

import json
import os
import threading
import time

from lm.train.activity import Activity
from lm.train.heartbeat import write_heartbeat


def test_it_says_who_does_what_and_when(tmp_path):
    activity = Activity()
    activity("evaluate", 12)
    before = time.time()
    write_heartbeat(tmp_path, activity, rank=3, host="h")
    told = json.loads((tmp_path / "3.json").read_text())
    assert before <= told.pop("time") <= time.time()
    assert told == {"rank": 3, "host": "h", "pid": os.getpid(), "step": 12, "phase": "evaluate"}


def test_whoever_reads_sees_it_whole(tmp_path):
    activity, over = Activity(), threading.Event()

    def write() -> None:
        while not over.is_set():
            write_heartbeat(tmp_path, activity, rank=0, host="h")

    write_heartbeat(tmp_path, activity, rank=0, host="h")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            assert json.loads((tmp_path / "0.json").read_text())["rank"] == 0
    finally:
        over.set()
        writer.join()
    assert [file.name for file in tmp_path.glob("*.json")] == ["0.json"]
