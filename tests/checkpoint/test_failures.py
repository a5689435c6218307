"""What a store does where its disk is full, read-only, slow or gone.

The errors come from a fault point, from a limit on the size of files, and from a small file system
in memory where mounting is allowed.
"""

import contextlib
import errno
import logging
import os
import resource
import shutil
import subprocess
import threading

import jax
import jax.numpy as jnp
import pytest

from lm.checkpoint import store as stores
from lm.checkpoint.saving import Saving
from lm.checkpoint.store import Patience, open_store
from lm.errors import CheckpointError
from tests.checkpoint.states import abstract, bits, make_state, save, spread

QUICK = Patience(pause=0.01, longest=0.02)
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def matrix(mib=1, seed=0):
    draw = jax.random.normal(jax.random.key(seed), (mib * 256, 1024))
    return spread({"trainable": {"w": draw}})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def warnings(caplog):
    return [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]


@contextlib.contextmanager
def files_of_at_most(size):
    """Stops Orbax as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_save_is_told_and_counted_leaves_no_step_and_stops_nothing(folder, caplog):
    with open_store(folder, Saving(), Patience(pause=300.0)) as store:
        save(store, 1, make_state(1))
        save(store, 2, make_state(2), error=FULL)
        save(store, 3, make_state(3), error=FULL)  # does not raise what the one before it met
        store.settle()
        assert (store.steps(), store.failed) == ([1], 2)
        assert names(folder) == ["1"]
        told = warnings(caplog)
        assert "step 2 could not be saved ([Errno 28] No space left on device)" in told[0]
        assert "the last good one is step 1. Training goes on; the next try is in 5 min" in told[0]
        assert "step 3 could not be saved" in told[1]
        save(store, 4, make_state(4))
    assert store.steps() == [1, 4]


def test_a_save_is_due_after_a_pause_that_doubles_until_one_succeeds(folder, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stores.time, "monotonic", lambda: now[0])
    with open_store(folder, Saving(), Patience(pause=5.0, longest=15.0)) as store:
        for pause in (5, 10, 15, 15):
            save(store, 1, make_state(1), error=FULL)
            store.settle()
            now[0] += pause - 0.1
            assert not store.due()
            now[0] += 0.2
            assert store.due()
        save(store, 1, make_state(1))
        store.wait()
        assert not store.due()
        save(store, 2, make_state(2), error=FULL)
        store.settle()
        now[0] += 5.1
        assert store.due()
        save(store, 3, make_state(3))
    assert store.steps() == [1, 3]


def test_the_last_state_is_tried_again_and_then_the_run_ends_in_one_paragraph(folder):
    state = make_state(1)
    failures = [FULL, FULL]

    class Files:
        def save(self, folder):
            if failures:
                raise failures.pop()
            (folder / "tokenizer.json").write_text("{}")

    with open_store(folder, Saving(), QUICK) as store:
        save(store, 1, state, files=Files())
        store.wait()  # the third try succeeds
        assert store.steps() == [1]
        failures += [FULL] * 3
        save(store, 2, state, files=Files())
        with pytest.raises(CheckpointError) as caught:
            store.wait()
        assert failures == []
    told = str(caught.value)
    assert "step 2 could not be saved ([Errno 28] No space left on device)" in told
    assert "the last good one is step 1. Make room" in told
    assert "\n" not in told
    assert bits(store.restore(1, abstract(state)).state) == bits(state)


def test_a_state_that_training_has_overwritten_is_not_tried_again(folder):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = matrix()
    with open_store(folder, Saving(), Patience(pause=300.0)) as store:
        save(store, 1, state, error=FULL)
        store.settle()
        jax.block_until_ready(step(state))
        with pytest.raises(CheckpointError, match="step 1 could not be saved"):
            store.wait()


def test_what_went_wrong_first_is_what_is_raised(folder, caplog):
    def diverge():
        with open_store(folder, Saving(), QUICK) as store:
            save(store, 1, make_state(), error=FULL)
            raise KeyError("diverged")

    with pytest.raises(KeyError):
        diverge()
    assert "step 1 could not be saved" in warnings(caplog)[0]


def test_arrays_that_find_no_room_leave_no_step_and_no_log(folder, caplog, capfd):
    """By RLIMIT_FSIZE: files may not grow beyond 64 KiB."""
    state = matrix()
    with open_store(folder, Saving(), QUICK) as store:
        save(store, 1, jax.tree.map(lambda x: x[:8, :8], state))
        store.wait()
        with files_of_at_most(2**16):
            save(store, 2, state)
            with pytest.raises(CheckpointError, match="step 2 could not be saved") as caught:
                store.wait()
        assert "\n" not in str(caught.value)
        assert names(folder) == ["1"]
        save(store, 2, state)
    assert store.steps() == [1, 2]
    assert "Traceback" not in caplog.text + capfd.readouterr().err


def test_a_disk_too_small_is_told_before_a_byte_is_written(folder, caplog, monkeypatch):
    real = shutil.disk_usage(folder.parent.parent)
    with open_store(folder, Saving(), QUICK) as store:
        save(store, 1, matrix(8))
        store.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=7 * 2**20))
        with monkeypatch.context() as patched:
            patched.setattr(store._handler, "async_save", None)  # would be called to write
            save(store, 2, matrix(8))
            assert "it needs 8.2 MiB and the disk has 7.0 MiB free; " in warnings(caplog)[0]
            assert "the 1 made before hold 8.0 MiB there" in warnings(caplog)[0]
        assert names(folder) == ["1"]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=9 * 2**20))
    assert store.steps() == [1, 2]


def test_storage_that_tells_no_size_is_written_to(folder, monkeypatch):
    real = shutil.disk_usage(folder.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(total=0, used=0, free=0))
    with open_store(folder, Saving()) as store:
        save(store, 1, make_state(1))
    assert store.steps() == [1]


def test_a_small_disk_that_fills_keeps_the_last_good_step_and_is_used_again(small_disk, caplog):
    """On a real file system of 16 MiB: two checkpoints of 6 MiB fit, a third does not."""
    folder = small_disk / "run" / "checkpoints"
    states = {step: matrix(6, step) for step in (1, 2, 3)}
    with open_store(folder, Saving(keep=2), QUICK) as store:
        for step, state in states.items():
            save(store, step, state)
            store.settle()
        assert store.steps() == [1, 2]
        assert names(folder) == ["1", "2"]
        (told,) = warnings(caplog)
        assert "needs 6.2 MiB and the disk has 3.9 MiB free; " in told
        assert "the 2 made before hold 12.0 MiB there" in told
        shutil.rmtree(folder / "1")  # the user makes room
        save(store, 3, states[3])
        store.wait()
        assert store.steps() == [2, 3]
        for step in (2, 3):
            state = states[step]
            assert bits(store.restore(step, abstract(state)).state) == bits(state)


def test_a_small_disk_that_fills_while_a_step_is_written_loses_that_step_alone(
    small_disk, monkeypatch
):
    """As above, with other programs taking the room that the check had found."""
    folder, state = small_disk / "run" / "checkpoints", matrix(6)
    monkeypatch.setattr(stores.Store, "_lack_of_room", lambda *_: None)
    with open_store(folder, Saving(), QUICK) as store:
        save(store, 1, state)
        store.wait()
        (small_disk / "others").write_bytes(bytes(6 * 2**20))
        save(store, 2, state)
        with pytest.raises(CheckpointError, match="step 2 could not be saved"):
            store.wait()
        assert names(folder) == ["1"]
        (small_disk / "others").unlink()
        assert bits(store.restore(1, abstract(state)).state) == bits(state)
        save(store, 3, state)
    assert store.steps() == [1, 3]


def test_a_disk_that_becomes_read_only_is_told_and_used_again(small_disk, caplog):
    folder, state = small_disk / "run" / "checkpoints", matrix()

    def remount(mode):
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    with open_store(folder, Saving(keep=1), QUICK) as store:
        save(store, 1, state)
        store.wait()
        remount("ro")
        save(store, 2, state)
        store.settle()
        assert "Read-only file system" in warnings(caplog)[0]
        assert store.steps() == [1]
        remount("rw")
        save(store, 3, state)
    assert store.steps() == [3]


def test_a_mount_that_vanished_is_not_written_to_as_if_it_were_there(small_disk, caplog):
    folder, state = small_disk, matrix()
    with open_store(folder, Saving(), QUICK) as store:
        save(store, 1, state)
        store.wait()
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
        save(store, 2, state)
        assert "the mount is gone" in warnings(caplog)[0]
        assert names(folder) == []
        with pytest.raises(CheckpointError, match="none is there"):
            store.wait()


def test_a_folder_that_vanished_is_told(folder, caplog):
    store = open_store(folder, Saving(), QUICK)
    save(store, 1, make_state(1))
    store.wait()
    shutil.rmtree(folder)
    save(store, 2, make_state(2))
    assert "No such file or directory" in warnings(caplog)[0]
    store.close()


def test_slow_storage_makes_a_save_be_left_out_and_made_up_for(folder, caplog):
    go_on = threading.Event()

    class Slow:
        def save(self, folder):
            go_on.wait(60)
            (folder / "tokenizer.json").write_text("{}")

    state = make_state(1)
    store = open_store(folder, Saving(), Patience(slow=0.05))
    save(store, 1, state, files=Slow())
    save(store, 2, state)  # comes back though step 1 is not written
    assert "step 2 could not be saved (the one before it is still being" in warnings(caplog)[0]
    assert not store.due()  # step 1 is still under way
    go_on.set()
    store.settle()
    assert store.due()
    assert store.steps() == [1]
    store.wait()  # the last state given must be saved, though it was left out
    assert store.steps() == [1, 2]
    store.close()


def test_old_steps_that_cannot_be_deleted_stop_nothing(folder, caplog, monkeypatch):
    real = os.replace

    def refuse(source, target):
        if str(target).endswith(".deleting"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with open_store(folder, Saving(keep=1)) as store:
        save(store, 1, make_state(1))
        save(store, 2, make_state(2))
    assert store.steps() == [1, 2]
    assert "old steps cannot be deleted" in warnings(caplog)[0]


@pytest.mark.parametrize("name", ["digests.json", "data.json"])
def test_no_old_step_is_deleted_where_the_new_one_is_not_committed(folder, name, monkeypatch):
    real = os.replace

    def refuse(source, target):
        if str(target).endswith(f"2.partial/{name}"):
            raise FULL
        real(source, target)

    with open_store(folder, Saving(keep=1), QUICK) as store:
        save(store, 1, make_state(1))
        store.wait()
        monkeypatch.setattr(os, "replace", refuse)
        save(store, 2, make_state(2))
        with pytest.raises(CheckpointError):
            store.wait()
    assert names(folder) == ["1"]


def test_a_mistake_of_ours_is_told_as_a_failed_save(folder):
    with open_store(folder, Saving(), QUICK) as store:
        save(store, 1, {"w": jnp.ones(4)}, error=RuntimeError("bug"))
        with pytest.raises(CheckpointError, match="bug"):
            store.wait()
    assert names(folder) == []
