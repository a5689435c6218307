"""One checkpoint by several processes on a shared file system, restored by another number."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess


def start(rank, processes, port, *words):
    command = [sys.executable, __file__, str(rank), str(processes), str(port), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(processes, *words):
    """What each process says last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [start(rank, processes, port, *words) for rank in range(processes)]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes
    # Gloo may speak on stdout too, after the worker's own line.
    told = [[line for line in text.splitlines() if line.startswith("{")] for text in said]
    return [json.loads(lines[-1]) for lines in told]


def test_two_processes_save_and_any_number_restores_the_same(tmp_path):
    folder = tmp_path / "checkpoints"
    saved = run(2, folder, "save")
    assert saved[0] == saved[1]
    assert saved[0]["steps"] == [2, 3]
    for processes in (1, 2):
        assert run(processes, folder, "load") == [saved[0]] * processes
    by_two = json.loads((folder / "3" / "digests.json").read_text())["leaves"]
    alone = tmp_path / "alone"
    run(1, alone, "save")
    assert json.loads((alone / "3" / "digests.json").read_text())["leaves"] == by_two
    # All processes agree that step 3 is damaged, and on the one before.
    data = max((folder / "3" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[100] ^= 1
    data.write_bytes(raw)
    shutil.copytree(folder / "2", folder / "3.damaged")
    first, second = run(2, folder, "load")
    assert first == second
    assert (first["step"], first["steps"]) == (2, [2])
    assert (folder / "3.damaged-2").is_dir()


def main(rank, processes, port, folder, task):
    import os

    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import jax

    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    from lm.checkpoint.record import make_record
    from lm.checkpoint.saving import Saving
    from lm.checkpoint.store import open_store

    shape = (jax.device_count() // 2, 2)
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def state(seed):
        def make(draw, spec):
            return jax.jit(draw, out_shardings=NamedSharding(mesh, spec))()

        key = jax.random.key(seed)
        weights = make(lambda: jax.random.normal(key, (256, 64)), P("fsdp", "tensor"))
        scale = make(lambda: jax.random.normal(key, (64,), jnp.bfloat16), P())
        return {"trainable": {"w": weights, "scale": scale}, "key": make(lambda: key, P())}

    class Files:
        def save(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    def describe(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    with open_store(Path(folder), Saving(keep=2)) as store:
        for step in range(4 if task == "save" else 0):
            store.save(
                step,
                state(step),
                data={"position": step},
                experiment={},
                record=make_record(step=step, tokens=0, parameters=0),
                tokenizer=Files(),
            )
        store.wait()
        restored = store.restore_newest(jax.tree.map(describe, state(0)))
        same = jax.jit(lambda a, b: jnp.all(a == b))
        expected = state(restored.step)
        equal = jax.tree.all(jax.tree.map(lambda a, b: bool(same(a, b)), restored.state, expected))
        assert equal
        assert restored.data == {"position": restored.step}
        print(json.dumps({"step": restored.step, "steps": store.steps()}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
