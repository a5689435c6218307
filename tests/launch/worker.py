"""A training process without the training: steps, heartbeats, and deeds at chosen steps.

worker.py STATE STEPS [RANK:ATTEMPT:STEP:DEED ...]

A deed is exit1, exit2, freeze, kill, child (starts a process that outlives it) or waits (for ever,
but beating).  SIGTERM is answered as a run does: it saves and exits with 0.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

state, steps = Path(sys.argv[1]), int(sys.argv[2])
rank = int(os.environ.get("JAX_PROCESS_ID", "0"))
beats = Path(os.environ["LM_HEARTBEATS"])
attempt = len(list(state.glob(f"pid-{rank}-*"))) + 1
(state / f"pid-{rank}-{attempt}").write_text(str(os.getpid()))
step = -1


def save(*_) -> None:
    (state / f"saved-{rank}").write_text(str(step))
    print("saved", flush=True)
    sys.exit(0)


def beat() -> None:
    while True:
        said = {"rank": rank, "host": "testhost", "pid": os.getpid(), "step": max(step, 0)}
        new = beats / f".{rank}"
        new.write_text(json.dumps({**said, "phase": "step", "time": time.time()}))
        new.rename(beats / f"{rank}.json")
        time.sleep(0.1)


signal.signal(signal.SIGTERM, save)
for step in range(steps):
    print(f"step {step} of {rank}", flush=True)
    if step == 0:
        threading.Thread(target=beat, daemon=True).start()
        time.sleep(0.15)
    for given in sys.argv[3:]:
        who, when, at, deed = given.split(":")
        if int(who) != rank or when not in ("*", str(attempt)) or int(at) != step:
            continue
        time.sleep(0.25)  # a heartbeat with this step
        if deed.startswith("exit"):
            print(f"deed of {rank}: {deed}", flush=True)
            os._exit(int(deed[4:]))
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if deed == "child":
            child = subprocess.Popen(["sleep", "300"])
            (state / f"child-{rank}").write_text(str(child.pid))
        if deed == "waits":
            (state / f"waits-{rank}").touch()
            time.sleep(300)
    time.sleep(0.05)
