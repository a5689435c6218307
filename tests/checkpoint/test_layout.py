import json
import os
import subprocess
import sys

import pytest

from lm.checkpoint import layout
from lm.errors import CheckpointError


@pytest.fixture
def run(tmp_path):
    for step in ("2", "10", "9"):
        whole(tmp_path / "checkpoints" / step)
    return tmp_path


def whole(step):
    (step / "state").mkdir(parents=True)
    (step / "digests.json").write_text("{}")


def test_steps_are_listed_by_number_and_only_when_whole(run):
    checkpoints = run / "checkpoints"
    (checkpoints / "11" / "state").mkdir(parents=True)  # never finished
    whole(checkpoints / "12")
    (checkpoints / "12" / "digests.json").write_text('{"format"')  # half written
    for name in ("13.partial", "14.deleting", "15.damaged", "016", "notes"):
        whole(checkpoints / name)
    assert [step.name for step in layout.steps(run)] == ["2", "9", "10"]
    assert layout.steps(checkpoints) == layout.steps(run)
    assert [step.name for step in layout.unfinished(run)] == ["11", "12"]


def test_a_checkpoint_is_a_step_or_the_newest_of_a_run(run):
    step = run / "checkpoints" / "9"
    assert layout.newest(run) == run / "checkpoints" / "10"
    assert layout.newest(step) == step
    copy = run / "copy under another name"
    step.rename(copy)
    assert layout.newest(copy) == copy


def test_what_is_no_checkpoint_is_named_with_what_was_found(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint or run"):
        layout.newest(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="a file, where a checkpoint is expected"):
        layout.newest(tmp_path / "file")
    with pytest.raises(CheckpointError, match="it holds file"):
        layout.newest(tmp_path)
    (tmp_path / "checkpoints" / "7" / "state").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="its steps 7 are unfinished"):
        layout.newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"digests.json is missing, so it was never finished"):
        layout.newest(tmp_path / "checkpoints" / "7")


def test_json_that_cannot_be_read_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"data.json: cannot be read"):
        layout.load_json(tmp_path, "data.json")
    (tmp_path / "data.json").write_text('{"position": 1')
    with pytest.raises(CheckpointError, match="not JSON"):
        layout.load_json(tmp_path, "data.json")
    (tmp_path / "data.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found list"):
        layout.load_json(tmp_path, "data.json")


def test_json_far_too_large_or_without_an_end_is_not_read(tmp_path):
    (tmp_path / "state").mkdir()
    with (tmp_path / "digests.json").open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room
    assert not layout.is_whole(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be read \(1,099,511,627,776 bytes, where"):
        layout.load_json(tmp_path, "digests.json")
    os.mkfifo(tmp_path / "data.json")
    with pytest.raises(CheckpointError, match=r"cannot be read \(no regular file"):
        layout.load_json(tmp_path, "data.json")
    (tmp_path / "record.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not JSON"):
        layout.load_json(tmp_path, "record.json")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    layout.write_json(tmp_path / "data.json", {"position": 1})
    with pytest.raises(TypeError):
        layout.write_json(tmp_path / "data.json", {"position": object()})
    assert json.loads((tmp_path / "data.json").read_text()) == {"position": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


@pytest.mark.parametrize("name", ["../outside", "/outside", "link/outside"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="lies outside"):
        layout.inside(folder, name)
    assert layout.inside(folder, "tokenizer/a.json") == folder / "tokenizer" / "a.json"


def test_the_light_modules_load_neither_jax_nor_orbax():
    code = (
        "import sys, lm.checkpoint.layout, lm.checkpoint.saving;"
        "sys.exit(any(name in sys.modules for name in ('jax', 'orbax', 'orbax.checkpoint')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
