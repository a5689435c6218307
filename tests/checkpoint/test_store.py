"""Saving, restoring and falling back, with a state like the one that is trained."""

import errno
import functools
import resource
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.checkpoint import layout, restore
from lm.checkpoint.record import make_record
from lm.checkpoint.restore import DamagedError, restore_newest, restore_params, verify
from lm.checkpoint.saving import Saving
from lm.checkpoint.store import open_store
from lm.errors import CheckpointError

QUERY = "trainable.blocks_0.block_0.mixer.query.w"


class State(NamedTuple):
    step: Any
    trainable: Any
    frozen: Any
    optimizer: Any
    key: Any


class Files:
    """A tokenizer as the store sees it."""

    def __init__(self, error=None):
        self.error = error

    def save(self, folder):
        if self.error is not None:
            raise self.error
        (folder / "tokenizer.json").write_text('{"kind": "bytes"}')


def spread(tree, shape=(4, 2), spec=("fsdp", "tensor")):
    """Matrices split over the mesh, the rest replicated."""
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def place(leaf):
        own = P(*spec) if leaf.ndim == 2 else P()
        return jax.device_put(leaf, NamedSharding(mesh, own))

    return jax.tree.map(place, tree)


@functools.cache
def make_state(seed=0, width=64):
    key, rng = jax.random.key(seed), np.random.default_rng(seed)

    def draw(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32)).astype(dtype)

    params = {
        "blocks_0": {
            "block_0": {
                "mixer": {"query": {"w": draw(2 * width, width)}},
                "norm": {"scale": draw(width, dtype=jnp.bfloat16)},
            }
        },
        "embedding": {"table": draw(64, width, dtype=jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return spread(State(jnp.int32(seed), params, {}, optimizer, key))


def abstract(tree):
    def shape_of(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(shape_of, tree)


def bits(tree):
    def raw(leaf):
        keyed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if keyed else leaf).tobytes()

    return jax.tree.map(raw, tree)


def save(store, step, state, *, error=None, position=0):
    store.save(
        step,
        state,
        data={"position": position, "skipped": [[3, 5]]},
        experiment={"kind": "Experiment", "name": "x"},
        record=make_record(step=step, tokens=1, parameters=2),
        tokenizer=Files(error),
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with the steps 1 and 2; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with open_store(folder, Saving()) as store:
        save(store, 1, make_state(1), position=10)
        save(store, 2, make_state(2), position=20)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run" / "checkpoints")


def test_a_state_comes_back_bit_for_bit_on_the_same_and_on_another_mesh(saved):
    state = make_state(2)
    for target in (state, spread(state, (2, 4), ("tensor", "fsdp")), spread(state, (8, 1))):
        restored = restore.restore(saved / "2", abstract(target))
        assert jax.tree.structure(restored.state) == jax.tree.structure(state)
        assert bits(restored.state) == bits(state)
        shardings = jax.tree.map(lambda a, b: a.sharding == b.sharding, restored.state, target)
        assert jax.tree.all(shardings)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, restored.state, state))
    assert restored.data == {"position": 20, "skipped": [[3, 5]]}
    assert (restored.step, restored.messages) == (2, ())


def test_the_key_restored_draws_the_same_numbers(saved):
    state = make_state(2)
    restored = restore.restore(saved / "2", abstract(state)).state
    assert jax.random.bits(restored.key) == jax.random.bits(state.key)


def test_a_step_holds_the_agreed_files(saved):
    expected = "data.json digests.json experiment.json record.json state tokenizer"
    assert sorted(path.name for path in (saved / "2").iterdir()) == expected.split()
    assert layout.load_json(saved / "2", "experiment.json")["name"] == "x"
    assert layout.load_json(saved / "2", "record.json")["step"] == 2
    assert verify(saved / "2") == []


def test_a_step_copied_elsewhere_is_complete(saved, tmp_path):
    copy = shutil.copytree(saved / "1", tmp_path / "given away")
    assert layout.newest(copy) == copy
    restored = restore.restore(copy, abstract(make_state(1)))
    assert restored.step == 1
    assert bits(restored.state) == bits(make_state(1))


def test_parameters_are_restored_without_the_optimizer(saved):
    params = make_state(1).trainable
    read = restore_params(saved / "1", abstract(params))
    assert bits(read) == bits(params)
    on_one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    assert bits(restore_params(saved / "1", on_one)) == bits(params)


def test_parameters_of_another_model_are_refused_by_name(saved):
    params = dict(abstract(make_state(1).trainable))
    extra = params | {"unembedding": params.pop("embedding")}
    with pytest.raises(CheckpointError) as caught:
        restore_params(saved / "1", extra)
    assert "trainable.unembedding.table (64, 64) is not in the checkpoint" in str(caught.value)
    assert "trainable.embedding.table (64, 64) has no place here" in str(caught.value)


def test_another_dtype_or_shape_is_refused_by_name_and_never_cast(saved):
    state = abstract(make_state(1))
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), state)
    with pytest.raises(CheckpointError) as caught:
        restore.restore(saved / "1", state._replace(trainable=half.trainable))
    assert f"{QUERY} is float32 (128, 64) there and bfloat16 (128, 64) here" in str(caught.value)
    assert not isinstance(caught.value, DamagedError)
    with pytest.raises(CheckpointError, match=r"float32 \(128, 64\) there and float32 \(16, 8\)"):
        restore.restore(saved / "1", abstract(make_state(width=8)))


def test_a_model_that_does_not_fit_leaves_the_run_as_it_is(copied):
    with pytest.raises(CheckpointError, match="not a state of this experiment"):
        restore_newest(copied, abstract(make_state(width=8)))
    assert [step.name for step in layout.steps(copied)] == ["1", "2"]


def test_training_on_at_once_does_not_reach_into_the_save(folder):
    """The very next step donates the buffers that are still being written."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    tree = spread({"trainable": {"w": jax.random.normal(jax.random.key(0), (1024, 1024))}})
    before, shapes = bits(tree), abstract(tree)
    with open_store(folder, Saving()) as store:
        for number in range(3):
            save(store, number, tree)
            tree = step(tree)
            store.wait()
            assert bits(store.restore(number, shapes).state) == before
            tree = store.restore(number, shapes).state


def flip(path, place, bit=0):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(bytes(raw))


def holding(step, array):
    """The file of a step that holds the bytes of (the first shard of) an array, and where."""
    needle = np.asarray(array.addressable_shards[0].data).tobytes()
    for path in sorted((step / "state").rglob("*")):
        if path.is_file() and (place := path.read_bytes().find(needle)) >= 0:
            return path, place
    raise AssertionError("no file holds it")


def test_one_flipped_bit_of_a_weight_is_noticed_and_its_leaf_and_file_named(copied):
    state = make_state(2)
    weights = state.trainable["blocks_0"]["block_0"]["mixer"]["query"]["w"]
    path, place = holding(copied / "2", weights)
    flip(path, place + 5, bit=3)
    with pytest.raises(DamagedError) as caught:
        restore.restore(copied / "2", abstract(state))
    assert f"leaf {QUERY}" in str(caught.value)
    assert path.relative_to(copied / "2").as_posix() in str(caught.value)
    assert f"leaf {QUERY}" in verify(copied / "2")
    assert "embedding" not in str(caught.value)


def test_a_flipped_bit_in_a_file_too_large_for_a_sha_is_noticed_by_the_leaf(folder, monkeypatch):
    monkeypatch.setattr("lm.checkpoint.integrity.SMALL", 0)
    state = make_state()
    with open_store(folder, Saving()) as store:
        save(store, 1, state)
    path, place = holding(folder / "1", state.trainable["embedding"]["table"])
    flip(path, place)
    with pytest.raises(DamagedError, match=r"what was saved: leaf trainable.embedding.table\.$"):
        restore.restore(folder / "1", abstract(state))


def test_a_bit_flipped_in_any_file_is_noticed(copied):
    """Orbax's own metadata, the data, the JSON files: one bit in the middle of each."""
    step, state = copied / "2", abstract(make_state(2))
    files = [path for path in sorted(step.rglob("*")) if path.is_file()]
    assert len(files) > 10
    for path in files:
        before = path.read_bytes()
        flip(path, len(before) // 2)
        with pytest.raises(CheckpointError, match=r"damaged|not a whole|not a state"):
            restore.restore(step, state)
        path.write_bytes(before)
    assert restore.restore(step, state).step == 2


@pytest.mark.parametrize("harm", ["truncated", "missing", "swapped"])
def test_files_truncated_missing_or_swapped_are_noticed(copied, harm, monkeypatch):
    step, state = copied / "2", make_state(2)
    weights = state.trainable["blocks_0"]["block_0"]["mixer"]["query"]["w"]
    path, _ = holding(step, weights)
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif harm == "missing":
        path.unlink()
    else:
        other, _ = holding(copied / "1", make_state(1).trainable["embedding"]["table"])
        path.write_bytes(other.read_bytes())
    monkeypatch.setattr(restore, "damaged_files", lambda *_: [])  # the leaves must tell
    with pytest.raises(DamagedError):
        restore.restore(step, abstract(state))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(copied):
    state = make_state(2)
    path, place = holding(copied / "2", state.trainable["embedding"]["table"])
    flip(path, place)
    restored = restore_newest(copied.parent, abstract(state))
    assert (restored.step, restored.data["position"]) == (1, 10)
    assert bits(restored.state) == bits(make_state(1))
    assert "leaf trainable.embedding.table" in restored.messages[0]
    assert "set aside as 2.damaged" in restored.messages[0]
    assert (copied / "2.damaged").is_dir()
    assert [step.name for step in layout.steps(copied)] == ["1"]


def test_a_run_of_damaged_checkpoints_is_an_error_and_not_a_fresh_start(copied):
    for step in "12":
        (copied / step / "data.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is what was saved"):
        restore_newest(copied, abstract(make_state()))


def test_what_may_not_be_read_is_not_called_damaged(copied, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(restore, "_read_arrays", refuse)
    with pytest.raises(CheckpointError, match="permissions"):
        restore_newest(copied, abstract(make_state()))
    assert [step.name for step in layout.steps(copied)] == ["1", "2"]


def test_half_written_steps_are_passed_over_and_said(copied):
    (copied / "2" / "digests.json").unlink()
    shutil.copytree(copied / "1", copied / "7.partial")
    restored = restore_newest(copied, abstract(make_state()))
    assert restored.step == 1
    assert "2: not a whole checkpoint" in restored.messages[0]
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        restore.restore(copied / "2", abstract(make_state()))


def test_an_empty_run_has_nothing_to_restore(folder):
    with open_store(folder, Saving()) as store:
        assert store.latest() is None
        assert store.restore_newest(abstract(make_state())) is None


def test_the_newest_and_every_so_manyth_step_stay(folder):
    state = spread({"trainable": {"w": jnp.ones((8, 8))}})
    with open_store(folder, Saving(keep=2, keep_every=4)) as store:
        for step in range(2, 13, 2):
            save(store, step, state)
        store.wait()
        assert store.steps() == [4, 8, 10, 12]
    assert sorted(path.name for path in folder.iterdir()) == ["10", "12", "4", "8"]


def test_a_step_that_is_there_whole_is_not_written_again(copied):
    before = (copied / "2" / "digests.json").stat().st_mtime_ns
    with open_store(copied, Saving()) as store:
        save(store, 2, make_state(5))
    assert (copied / "2" / "digests.json").stat().st_mtime_ns == before


def test_an_unfinished_step_is_written_anew_and_leftovers_are_cleared(copied):
    (copied / "2" / "digests.json").unlink()
    shutil.copytree(copied / "1", copied / "1.deleting")
    shutil.copytree(copied / "1", copied / "3.partial")
    with open_store(copied, Saving()) as store:
        assert store.steps() == [1]
        save(store, 2, make_state(5))
        store.wait()
        assert bits(store.restore(2, abstract(make_state(5))).state) == bits(make_state(5))
    assert sorted(path.name for path in copied.iterdir()) == ["1", "2"]


def test_a_failed_save_is_told_once_and_leaves_no_step(copied):
    full = OSError(errno.ENOSPC, "No space left on device")
    store = open_store(copied, Saving())
    save(store, 3, make_state(3), error=full)
    with pytest.raises(CheckpointError, match=r"step 3 could not be saved.*No space left.*step 2"):
        store.wait()
    assert sorted(path.name for path in copied.iterdir()) == ["1", "2"]
    save(store, 4, make_state(4), error=full)
    with pytest.raises(CheckpointError, match="step 4"):
        save(store, 5, make_state(5))
    save(store, 5, make_state(5))
    store.close()
    assert store.steps() == [1, 2, 5]


def test_arrays_that_find_no_room_leave_no_step_and_no_log(folder, caplog, capfd):
    """Files may not grow beyond 64 KiB here, which stops Orbax as a full disk does."""
    state = spread({"trainable": {"w": jax.random.normal(jax.random.key(0), (512, 512))}})
    store = open_store(folder, Saving())
    save(store, 1, jax.tree.map(lambda x: x[:8, :8], state))
    store.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        save(store, 2, state)
        with pytest.raises(CheckpointError, match="step 2 could not be saved") as caught:
            store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert store.steps() == [1]
    assert not (folder / "2.partial").exists()
    save(store, 2, state)
    store.close()
    assert store.steps() == [1, 2]
    assert "Traceback" not in caplog.text + capfd.readouterr().err


def test_what_went_wrong_first_is_what_is_raised(folder):
    def diverge():
        with open_store(folder, Saving()) as store:
            save(store, 1, make_state(), error=OSError(errno.ENOSPC, "full"))
            raise KeyError("diverged")

    with pytest.raises(KeyError) as caught:
        diverge()
    assert "step 1 could not be saved" in caught.value.__notes__[0]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to.*--runs"):
        open_store(tmp_path / "file" / "checkpoints", Saving())
