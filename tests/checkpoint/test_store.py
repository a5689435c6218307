"""Saving, restoring and falling back, with a state like the one that is trained."""

import errno
import shutil

import jax
import jax.numpy as jnp
import pytest

from lm.checkpoint import integrity, layout, restore
from lm.checkpoint.restore import DamagedError, restore_newest, restore_params, verify
from lm.checkpoint.saving import Saving
from lm.checkpoint.store import open_store
from lm.errors import CheckpointError
from tests.checkpoint.states import abstract, bits, flip, holding, make_state, save, spread

QUERY = "trainable.blocks_0.block_0.mixer.query.w"


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


def test_of_parameters_alone_the_leaf_tells_first_and_then_the_large_file(copied, monkeypatch):
    """Large files are not read a second time where all is well."""
    monkeypatch.setattr("lm.checkpoint.integrity.SMALL", 0)
    params = make_state(2).trainable
    path, place = holding(copied / "2", params["embedding"]["table"])
    read = []
    real = integrity.sha256
    monkeypatch.setattr(integrity, "sha256", lambda path: read.append(path) or real(path))
    restore_params(copied / "2", abstract(params))
    assert path not in read
    flip(path, place)
    name = path.relative_to(copied / "2").as_posix()
    with pytest.raises(DamagedError) as caught:
        restore_params(copied / "2", abstract(params))
    assert f": leaf trainable.embedding.table, file {name}. Use another" in str(caught.value)


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
    with pytest.raises(DamagedError, match=f"file {path.relative_to(step).as_posix()}"):
        restore.restore(step, abstract(state))
    monkeypatch.setattr(restore, "damaged_files", lambda *_: [])  # the leaves must tell
    with pytest.raises(DamagedError, match=r"leaf|its state"):
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


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to.*--runs"):
        open_store(tmp_path / "file" / "checkpoints", Saving())
