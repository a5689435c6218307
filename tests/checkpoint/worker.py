"""One of several processes that save and restore; says what came of it as a line of JSON.

    python -m tests.checkpoint.worker RANK PROCESSES PORT TASK FOLDER [VIEW]

Process 1 looks at VIEW in place of FOLDER, where one is given.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.checkpoint import agree
from lm.checkpoint.record import make_record
from lm.checkpoint.restore import restore_newest
from lm.checkpoint.saving import Saving
from lm.checkpoint.store import Patience, open_store
from lm.errors import CheckpointError

QUICK = Patience(pause=0.01)


def make_state(seed):
    shape = (jax.device_count() // 2, 2)
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def make(draw, spec):
        return jax.jit(draw, out_shardings=NamedSharding(mesh, spec))()

    key = jax.random.key(seed)
    weights = make(lambda: jax.random.normal(key, (256, 64)), P("fsdp", "tensor"))
    scale = make(lambda: jax.random.normal(key, (64,), jnp.bfloat16), P())
    return {"trainable": {"w": weights, "scale": scale}, "key": make(lambda: key, P())}


class Files:
    def save(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def save(store, step):
    record = make_record(step=step, tokens=0, parameters=0)
    content = {"data": {"position": step}, "experiment": {}, "record": record}
    store.save(step, make_state(step), **content, tokenizer=Files())


def restored(folder):
    def describe(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    found = restore_newest(folder, jax.tree.map(describe, make_state(0)))
    same = jax.jit(lambda a, b: jnp.all(a == b))
    expected = make_state(found.step)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(same(a, b)), found.state, expected))
    assert found.data == {"position": found.step}
    return {"step": found.step, "messages": found.messages}


def load(folder):
    with open_store(folder, Saving(keep=2)) as store:
        return {**restored(folder), "steps": store.steps()}


def save_four(folder):
    with open_store(folder, Saving(keep=2)) as store:
        for step in range(4):
            save(store, step)
    return load(folder)


def break_writing(store):
    """From now on process 1 can write nothing; gives what mends that."""
    real = store._handler.async_save

    async def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    store._handler.async_save = refuse if jax.process_index() == 1 else real

    def mend():
        store._handler.async_save = real

    return mend


def fail(folder):
    with open_store(folder, Saving(), QUICK) as store:
        save(store, 0)
        store.wait()
        mend = break_writing(store)
        save(store, 1)
        store.settle()
        why = store._why
        mend()
        save(store, 2)
        store.wait()
        return {"steps": store.steps(), "failed": store.failed, "why": why}


def fail_last(folder):
    store = open_store(folder, Saving(), QUICK)
    save(store, 0)
    store.wait()
    break_writing(store)
    save(store, 1)
    try:
        store.wait()
    except CheckpointError as error:
        return {"error": str(error), "steps": store.steps()}
    finally:
        store.close()


def views(folder):
    agree.LOOKS = (0.1,)
    return restored(folder)


def late(folder):
    """Step 3 shows on process 1 after a second."""
    agree.LOOKS = (0.1, 0.2, 3.0)

    def show():
        shutil.copytree(folder.parent / "checkpoints" / "3", folder / "copy")
        (folder / "copy").rename(folder / "3")

    if jax.process_index() == 1:
        threading.Timer(1.0, show).start()
    return restored(folder)


def apart(folder):
    agree.LOOKS = (0.1,)
    open_store(folder, Saving())


TASKS = {
    "load": load,
    "save": save_four,
    "fail": fail,
    "fail-last": fail_last,
    "views": views,
    "late": late,
    "apart": apart,
}


def main(rank, processes, port, task, *folders):
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    own = folders[-1] if rank == 1 else folders[0]
    try:
        told = TASKS[task](Path(own))
    except CheckpointError as error:
        told = {"error": str(error).replace(own, "FOLDER")}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
