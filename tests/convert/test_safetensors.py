import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from lm.convert.safetensors import INDEX, SINGLE, open_tensors, write_tensors
from lm.errors import ConversionError

KINDS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def some_tensors():
    rng = np.random.default_rng(0)
    shapes = {"a.w": (3, 5), "b": (7,), "c.w": (2, 3, 4), "d": (10,)}
    # One of them lies in memory as a transpose does.
    return {n: rng.standard_normal(s[::-1]).astype(np.float32).T for n, s in shapes.items()}


def write(folder, tensors, **options):
    shapes = {name: array.shape for name, array in tensors.items()}
    return write_tensors(folder, shapes, iter(tensors.items()), **options)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shard_bytes", [10**9, 100, 1])
def test_what_is_written_is_read_again(tmp_path, dtype, shard_bytes):
    tensors = some_tensors()
    files = write(tmp_path, tensors, dtype=dtype, shard_bytes=shard_bytes)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(files)
    found = open_tensors(tmp_path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        again = found[name]()
        assert again.dtype == KINDS[dtype]
        np.testing.assert_array_equal(again, array.astype(KINDS[dtype]))


def test_library_reads_file_and_metadata(tmp_path):
    write(tmp_path, some_tensors())
    with safe_open(tmp_path / SINGLE, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted(some_tensors())


def test_data_starts_at_a_multiple_of_eight(tmp_path):
    write(tmp_path, some_tensors())
    (length,) = struct.unpack("<Q", (tmp_path / SINGLE).read_bytes()[:8])
    assert length % 8 == 0


def test_index_covers_every_tensor_and_no_shard_is_too_large(tmp_path):
    tensors = some_tensors()
    files = write(tmp_path, tensors, shard_bytes=100)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == 4 * sum(a.size for a in tensors.values())
    assert files[0] == f"model-00001-of-0000{len(files) - 1}.safetensors"
    for file in files[:-1]:
        names = [name for name, home in index["weight_map"].items() if home == file]
        assert sum(tensors[name].nbytes for name in names) <= 100


def test_values_beyond_half_precision_are_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"big: 1 values up to 1e\+05 .*bfloat16"):
        write(tmp_path, {"big": np.float32([1.0, 1e5])}, dtype="float16")
    write(tmp_path, {"big": np.float32([1.0, 1e5])}, dtype="bfloat16")


def test_tensors_in_another_order_than_planned_are_caught(tmp_path):
    tensors = some_tensors()
    shapes = {name: array.shape for name, array in tensors.items()}
    with pytest.raises(ValueError, match="planned"):
        write_tensors(tmp_path, shapes, reversed(list(tensors.items())))


def test_missing_shards_are_named(tmp_path):
    files = write(tmp_path, some_tensors(), shard_bytes=1)
    (tmp_path / files[1]).unlink()
    with pytest.raises(ConversionError, match=f"4 files, 1 of which .* {files[1]}"):
        open_tensors(tmp_path)


def test_index_that_names_absent_tensors_is_refused(tmp_path):
    write(tmp_path, some_tensors(), shard_bytes=1)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["ghost"] = index["weight_map"]["b"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="lack, ghost"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("keep", [3, 40, -1])
def test_truncated_files_are_refused(tmp_path, keep):
    write(tmp_path, some_tensors())
    whole = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(whole[:keep])
    with pytest.raises(ConversionError, match="half downloaded"):
        open_tensors(tmp_path)


def test_pickles_are_refused_with_the_reason(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"pickles \(pytorch_model.bin\).* run any code"):
        open_tensors(tmp_path)


def test_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"neither model\.safetensors"):
        open_tensors(tmp_path)
    with pytest.raises(ConversionError, match="no such folder"):
        open_tensors(tmp_path / "nowhere")
    (tmp_path / INDEX).write_text("[")
    with pytest.raises(ConversionError, match="cannot be read"):
        open_tensors(tmp_path)
