"""What each launcher prints for representative jobs, kept as text.

python -m tests.launch.golden   rewrites tests/launch/goldens; review the difference
"""

import contextlib
import io
from pathlib import Path

from launch.__main__ import main

FOLDER = Path(__file__).parent / "goldens"

CASES = {
    "slurm-gpus": (
        *("slurm", "--name", "llama-1b", "--nodes", "4", "--gpus-per-node", "8"),
        *("--cpus-per-task", "12", "--time", "24:00:00", "--partition", "h100"),
        *("--setup", "module load cuda", "--setup", "source .venv/bin/activate"),
        *("--env", "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true"),
        *("--", "lm", "train", "configs/pretrain/llama_1b.py", "--name", "it's one"),
    ),
    "slurm-stop-after": (
        *("slurm", "--name", "small", "--time", "4:00:00", "--stop-after", "3h50m"),
        *("--", "lm", "train", "configs/quickstart.py"),
    ),
    "tpu-vm-one-slice": (
        *("tpu-vm", "--name", "llama", "--type", "v5e-64", "--zone", "us-west4-a"),
        *("--", "lm", "train", "configs/pretrain/llama2_7b.py"),
    ),
    "tpu-vm-spot-slices": (
        *("tpu-vm", "--name", "llama", "--type", "v6e-256", "--zone", "us-east5-b"),
        *("--slices", "2", "--spot", "--project", "my-project", "--bucket", "my-bucket"),
        *("--internal-ip", "--network", "big", "--env", "LIBTPU_INIT_ARGS=--a=b --c"),
        *("--", "lm", "train", "configs/pretrain/llama2_7b.py", "--parallel.mesh.slices=2"),
    ),
    "gke-tpu-slices": (
        *("gke", "--name", "llama", "--image", "europe-docker.pkg.dev/p/r/lm:1"),
        *("--type", "v5p-128", "--slices", "2", "--spot", "--bucket", "my-bucket"),
        *("--service-account", "trainer", "--queue", "research", "--namespace", "team"),
        *("--env", "PRICE=$5", "--", "lm", "train", "c.py", "--runs", "/runs"),
    ),
    "gke-gpu-nodes": (
        *("gke", "--name", "llama", "--image", "lm:1", "--gpus", "8", "--nodes", "4"),
        *("--gpu-type", "nvidia-h100-80gb", "--volume-size", "1Ti"),
        *("--", "lm", "train", "c.py", "--runs", "/runs"),
    ),
}


def printed(name: str) -> str:
    """What the launcher prints for this case."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(CASES[name])
    assert code == 0, name
    return out.getvalue()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        (FOLDER / f"{case}.txt").write_text(printed(case))
        print(FOLDER / f"{case}.txt")
