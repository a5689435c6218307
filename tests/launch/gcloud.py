"""Stands in for gcloud: queued resources whose workers are folders of this machine.

CLOUD names the folder: ``state`` (of the queued resource), ``calls`` (every line of words),
``workers`` (how many are made), ``worker-N`` (the home of each).  ``state`` may be changed by a
test, as a preemption does; creating makes it ACTIVE.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

cloud = Path(os.environ["CLOUD"])
words = sys.argv[1:]
assert words[:3] == ["compute", "tpus", "queued-resources"], words
with (cloud / "calls").open("a") as calls:
    print(*words, file=calls)
verb, rest = words[3], words[4:]
flags = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))
names = [word for word in rest if not word.startswith("--")]
state = cloud / "state"
assert flags["zone"] == "here"
sys.stdin.read()  # as ssh does: it would eat a script that comes by standard input


def homes() -> list[Path]:
    if state.read_text() != "ACTIVE":
        sys.exit("no such machine")
    made = sorted(cloud.glob("worker-*"))
    return made if flags["worker"] == "all" else [made[int(flags["worker"])]]


if verb == "describe":
    if not state.exists():
        sys.exit("ERROR: NOT_FOUND: queued resource")
    print(state.read_text())
elif verb == "create":
    if (cloud / "refuses").exists():
        sys.exit("ERROR: no quota")
    for rank in range(int((cloud / "workers").read_text())):
        (cloud / f"worker-{rank}").mkdir()
    state.write_text("ACTIVE")
elif verb == "delete":
    assert "force" in flags
    for home in cloud.glob("worker-*"):
        shutil.rmtree(home)
    state.unlink()
elif verb == "scp":
    *sources, target = names
    for home in homes():
        for source in sources:
            shutil.copy(source, home / target.partition(":")[2])
elif verb == "ssh":
    running = []
    for home in homes():
        env = {**os.environ, "HOME": str(home), "RANK": home.name.partition("-")[2]}
        argv = ["bash", "-c", flags["command"]]
        running.append(subprocess.Popen(argv, cwd=home, env=env, stdin=subprocess.DEVNULL))
    sys.exit(max(process.wait() for process in running))
else:
    sys.exit(f"unknown verb {verb}")
