"""Every kind of harm to the files of a checkpoint is found, named, and never trusted."""

import json
import math
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tensorstore

from lm.checkpoint import layout, restore
from lm.checkpoint.integrity import vouched
from lm.checkpoint.restore import DamagedError, restore_newest, verify
from lm.checkpoint.saving import Saving
from lm.checkpoint.store import open_store
from lm.errors import CheckpointError
from tests.checkpoint.states import abstract, bits, make_state, save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with the steps 1 and 2; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with open_store(folder, Saving()) as store:
        save(store, 1, make_state(1))
        save(store, 2, make_state(2))
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run" / "checkpoints")


def data_files(step):
    """The files that hold leaves."""
    found = [path for path in sorted((step / "state").rglob("d/*")) if path.is_file()]
    assert len(found) > 1
    return found


def name(step, path):
    return path.relative_to(step).as_posix()


def assert_named(step, *paths):
    """A restore names the files, and so does a verification."""
    problems = verify(step)
    with pytest.raises(DamagedError) as caught:
        restore.restore(step, abstract(make_state(2)))
    for path in paths:
        assert f"file {name(step, path)}" in str(caught.value)
        assert f"file {name(step, path)}" in problems
    return problems


def test_a_bit_flipped_anywhere_in_the_data_is_found_and_its_file_named(copied, monkeypatch):
    """Thirty places drawn at random, in large files as in small ones."""
    monkeypatch.setattr("lm.checkpoint.integrity.SMALL", 0)
    step, draw = copied / "2", random.Random(0)
    leaves = 0
    for _ in range(30):
        files = data_files(step)
        (path,) = draw.choices(files, [file.stat().st_size for file in files])
        before = path.read_bytes()
        raw = bytearray(before)
        place = draw.randrange(len(raw))
        raw[place] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
        problems = assert_named(step, path)
        assert [problem for problem in problems if problem.startswith("file")] == [problems[0]]
        leaves += any(problem.startswith("leaf") for problem in problems)
        path.write_bytes(before)
    assert leaves > 20
    assert verify(step) == []


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_files_that_changed_places_are_found_and_named(copied, large, monkeypatch):
    """Two files of a step with each other, and each with that of another step."""
    monkeypatch.setattr("lm.checkpoint.integrity.SMALL", 0 if large else 2**20)
    step = copied / "2"
    first, *others = data_files(step)
    for other in others[:2]:
        swap(first, other)
        assert_named(step, first, other)
        swap(first, other)
    ours, theirs = (
        max(data_files(copied / number), key=lambda path: path.stat().st_size) for number in "21"
    )
    before = ours.read_bytes()
    ours.write_bytes(theirs.read_bytes())
    assert_named(step, ours)
    ours.write_bytes(before)
    assert verify(step) == []


def swap(first, second):
    between = first.with_name("between")
    first.rename(between)
    second.rename(first)
    between.rename(second)


@pytest.mark.parametrize("harm", ["missing", "truncated", "empty", "longer"])
def test_files_missing_or_of_another_length_are_found_and_named(copied, harm):
    step = copied / "2"
    for path in data_files(step):
        before = path.read_bytes()
        path.unlink()
        after = {"truncated": before[: len(before) // 2], "empty": b"", "longer": before + b"0"}
        if harm != "missing":
            path.write_bytes(after[harm])
        assert_named(step, path)
        path.write_bytes(before)
    assert verify(step) == []


def test_whole_states_exchanged_between_steps_are_found(copied):
    swap(copied / "1" / "state", copied / "2" / "state")
    assert_named(copied / "2", copied / "2" / "state" / "manifest.ocdbt")


def test_digests_of_another_step_are_found(copied):
    shutil.copy(copied / "1" / "digests.json", copied / "2" / "digests.json")
    with pytest.raises(DamagedError):
        restore.restore(copied / "2", abstract(make_state(2)))


def test_the_newest_whole_one_is_used_however_the_newer_are_damaged(saved, tmp_path):
    copied = shutil.copytree(saved, tmp_path / "run" / "checkpoints")
    for step in (3, 4):
        shutil.copytree(copied / "2", copied / str(step))
    for path in data_files(copied / "3"):
        path.unlink()
    data = data_files(copied / "4")[0]
    data.write_bytes(data.read_bytes()[::-1])
    restored = restore_newest(copied, abstract(make_state(2)))
    assert restored.folder.name == "2"
    assert bits(restored.state) == bits(make_state(2))
    assert [message.split("set aside as ")[1] for message in restored.messages] == [
        "4.damaged.", "3.damaged."]  # fmt: skip
    assert [step.name for step in layout.steps(copied)] == ["1", "2"]


def edit(step, change):
    """As somebody would who means harm: the digests vouch for themselves."""
    path = step / "digests.json"
    content = json.loads(path.read_text())
    content.pop("own")
    change(content)
    path.write_text(json.dumps(vouched(content)))


def test_a_claim_of_more_than_the_memory_is_refused_before_any_is_taken(copied):
    """The checkpoint and the model that came with it agree on a leaf of 10^15 elements."""
    huge = (10**8, 10**7)
    state = abstract(make_state(2))
    table = state.trainable["embedding"]["table"]
    claimed = jax.ShapeDtypeStruct(huge, table.dtype, sharding=table.sharding)
    params = {**state.trainable, "embedding": {"table": claimed}}
    edit(
        copied / "2",
        lambda content: content["leaves"]["trainable.embedding.table"].update(shape=huge),
    )
    with pytest.raises(CheckpointError, match=r"leaf trainable.embedding.table .* needs .* GiB"):
        restore.restore(copied / "2", state._replace(trainable=params))


def test_arrays_that_claim_more_than_the_memory_are_refused_before_any_is_taken(tmp_path):
    """The digests look harmless, the arrays' own metadata claim 10^15 elements."""
    with open_store(tmp_path / "checkpoints", Saving()) as store:
        save(store, 1, {"w": jnp.ones((8, 8)), "v": jnp.ones(3)})
    step = tmp_path / "checkpoints" / "1"
    base = {"driver": "ocdbt", "base": f"file://{step / 'state'}/"}
    files = tensorstore.KvStore.open(base).result()
    content = json.loads(files["w/zarr.json"])
    content["shape"] = [10**8, 10**7]
    files["w/zarr.json"] = json.dumps(content).encode()
    with pytest.raises(CheckpointError, match=r"leaf w \(100000000, 10000000\) needs"):
        verify(step)
    described = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32),
                 "v": jax.ShapeDtypeStruct((3,), jnp.float32)}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"manifest\.ocdbt"):
        restore.restore(step, described)


@pytest.mark.parametrize(
    "shape", [[-1, 4], ["a"], [4.5], [math.nan], "64", {"a": 1}, [[1]], [True]]
)
def test_shapes_that_are_none_are_refused(copied, shape):
    edit(
        copied / "2",
        lambda content: content["leaves"]["trainable.embedding.table"].update(shape=shape),
    )
    with pytest.raises(CheckpointError, match="damaged"):
        restore.restore(copied / "2", abstract(make_state(2)))


@pytest.mark.parametrize("outside", ["../../../secret", "/etc/hostname", "link/secret"])
def test_digests_that_name_files_outside_are_refused(copied, outside):
    (copied / "2" / "link").symlink_to(copied.parent)
    edit(copied / "2", lambda content: content["files"].update({outside: "0" * 64}))
    with pytest.raises(CheckpointError, match="lies outside"):
        restore.restore(copied / "2", abstract(make_state(2)))


def test_data_linked_from_elsewhere_is_refused(copied):
    path = data_files(copied / "2")[0]
    elsewhere = copied.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)  # its content is right
    with pytest.raises(CheckpointError, match="lies outside"):
        restore.restore(copied / "2", abstract(make_state(2)))


def test_numpy_and_pickle_have_no_way_in():
    """No file of this package unpickles, and NumPy is never allowed to."""
    words = ("import pickle", "import dill", "import cloudpickle", "allow_pickle=True", "np.load(",
             "torch.load(", "import marshal", "import shelve")  # fmt: skip
    package = Path(layout.__file__).parents[1]
    found = [
        f"{path.relative_to(package)}: {word}"
        for path in package.rglob("*.py")
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []
