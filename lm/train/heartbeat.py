"""A sign of life for whoever started this process: one small file, written anew each second."""

import json
import os
import time
from pathlib import Path

from lm.train.activity import Activity


def write_heartbeat(folder: Path, activity: Activity, *, rank: int, host: str) -> None:
    """Write ``RANK.json`` in one step, so that it is never seen half written.

    It holds rank, host, pid, step, phase (as ``lm.train.activity`` has them) and the time in
    seconds since 1970.
    """
    now = activity.now
    beat = {
        "rank": rank,
        "host": host,
        "pid": os.getpid(),
        "step": now.step,
        "phase": now.phase,
        "time": time.time(),
    }
    temporary = folder / f".{rank}.json.tmp"
    temporary.write_text(json.dumps(beat) + "\n", encoding="utf-8")
    os.replace(temporary, folder / f"{rank}.json")
