"""How long a save keeps training from going on: ours against Orbax's own ``AsyncCheckpointer``.

Both save the same state of 1 GiB (float32 matrices, split over the devices), turn by turn in one
process, on one device and on eight virtual ones.  Each waits for its save to be whole before the
other begins, and its folder is deleted.  ``blocked`` is the time until the call returns,
``stepped`` that and one step that donates the state, ``whole`` until the save is finished.

    python tests/benchmarks/saving.py [--turns 20] [--gib 1] [--folder DIR] [--json FILE]
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEAVES = 32
Save = Callable[[Path, int, Any], Callable[[], None]]
"""(folder, number, state) -> what waits until it is whole."""


def ours(folder: Path) -> Save:
    """Saving with lm."""
    from lm.checkpoint.record import make_record
    from lm.checkpoint.saving import Saving
    from lm.checkpoint.store import open_store

    class Files:
        def save(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    store = open_store(folder, Saving(keep=1))

    def save(_: Path, number: int, state: Any) -> Callable[[], None]:
        record = make_record(step=number, tokens=0, parameters=0)
        store.save(number, state, data={}, experiment={}, record=record, tokenizer=Files())
        return store.wait

    return save


def orbax(_: Path) -> Save:
    """Saving with Orbax alone, set up as ours is."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)
    checkpointer = ocp.AsyncCheckpointer(handler)

    def save(folder: Path, number: int, state: Any) -> Callable[[], None]:
        checkpointer.save(folder / str(number), args=ocp.args.PyTreeSave(state))
        return checkpointer.wait_until_finished

    return save


SIDES: dict[str, Callable[[Path], Save]] = {"lm": ours, "orbax": orbax}


def work(devices: int, turns: int, gib: float, where: str | None) -> None:
    """Measure in this process; prints one JSON object."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((devices,), ("fsdp",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("fsdp"))
    rows = int(gib * 2**30 / 4 / LEAVES / 4096) // devices * devices

    @functools.partial(jax.jit, out_shardings=spread)
    def make() -> Any:
        keys = jax.random.split(jax.random.key(0), LEAVES)
        return {f"w{i}": jax.random.normal(key, (rows, 4096)) for i, key in enumerate(keys)}

    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * jnp.float32(0.999), tree),
                   donate_argnums=0)  # fmt: skip
    state = jax.block_until_ready(make())
    times: dict[str, dict[str, list[float]]] = {
        side: {"blocked": [], "stepped": [], "whole": []} for side in SIDES
    }
    with tempfile.TemporaryDirectory(dir=where) as parent:
        folders = {side: Path(parent) / side for side in SIDES}
        saves = {side: make_save(folders[side]) for side, make_save in SIDES.items()}
        for turn in range(turns + 1):  # the first one compiles
            for side, save in saves.items():
                state = jax.block_until_ready(step(state))
                began = time.perf_counter()
                wait = save(folders[side], turn, state)
                marks = {"blocked": time.perf_counter() - began}
                state = jax.block_until_ready(step(state))
                marks["stepped"] = time.perf_counter() - began
                wait()
                marks["whole"] = time.perf_counter() - began
                shutil.rmtree(folders[side] / str(turn), ignore_errors=True)
                for name, seconds in marks.items() if turn else ():
                    times[side][name].append(seconds)
    print(json.dumps(times), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--folder", help="where to save; a temporary folder if not given")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.turns, arguments.gib, arguments.folder)
        return
    found: dict[str, Any] = {"gib": arguments.gib, "turns": arguments.turns}
    print(f"{arguments.gib} GiB, median of {arguments.turns} (least to most), milliseconds")
    for devices in arguments.devices:
        command = [sys.executable, __file__, "--worker", str(devices), "--gib", str(arguments.gib)]
        command += ["--turns", str(arguments.turns)]
        command += ["--folder", arguments.folder] if arguments.folder else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        times = json.loads(done.stdout.splitlines()[-1])
        found[f"{devices} devices"] = times
        for name in ("blocked", "stepped", "whole"):
            told = "   ".join(
                f"{side:>5} {1e3 * statistics.median(taken):7.1f} "
                f"({1e3 * min(taken):.1f} to {1e3 * max(taken):.1f})"
                for side in SIDES
                for taken in [times[side][name]]
            )
            print(f"{devices} devices  {name:<7}  {told}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
