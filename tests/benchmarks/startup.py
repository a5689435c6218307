"""From launch to the first step, with a cold and a warm compilation cache.

Starts ``lm train`` in a process of its own on a 25M-parameter Llama and synthetic tokens, and
reads from its metrics when the first step was done.  Cold and warm take turns.

    python tests/benchmarks/startup.py [--turns 3] [--json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "configs" / "benchmark" / "startup_25m.py"


def launch(cache: str) -> float:
    """Seconds from launch until the first step's metrics are on disk."""
    with tempfile.TemporaryDirectory() as runs:
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "lm", "train", str(CONFIG), "--runs", runs],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
            stdout=subprocess.DEVNULL,
        )
        metrics = Path(runs) / "startup_25m" / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.005)
        seconds = time.time() - began
        if process.wait() != 0 or not metrics.is_file():
            raise SystemExit("lm train failed")
        return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as cache:
            times["cold"].append(launch(cache))
            times["warm"].append(launch(cache))
    for name, seconds in times.items():
        print(
            f"{name}  {statistics.median(seconds):.2f} s to the first step "
            f"({min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)} launches)"
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
