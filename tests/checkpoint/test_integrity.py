import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.checkpoint import integrity
from lm.checkpoint.integrity import Digest, Digests, own_sums, read_sums, start_sums, written_sums
from lm.errors import CheckpointError

DTYPES = ["float32", "bfloat16", "int32", "uint32", "int8", "bool"]


def total(array):
    return read_sums({"leaf": jnp.asarray(array)})["leaf"]


def on_devices(array):
    """As on an accelerator: one program for all devices, begun at once."""
    return written_sums([own_sums({"leaf": integrity._dispatch(array)})])["leaf"]


def bits_of(dtype, shape=(8, 4, 6)):
    rng = np.random.default_rng(0)
    if dtype == "bool":
        return jnp.asarray(rng.integers(0, 2, shape).astype(bool))
    size = jnp.dtype(dtype).itemsize
    words = rng.integers(0, 256, (*shape, size), dtype=np.uint8).view(f"u{size}")[..., 0]
    # Any bits at all, NaNs with payload and subnormal numbers among them.
    return jax.lax.bitcast_convert_type(jnp.asarray(words), jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_the_same_on_every_mesh(dtype):
    array = bits_of(dtype)
    alone = total(array)
    meshes = {
        (8,): [P("a")],
        (4, 2): [P("b", "a"), P(("b", "a")), P(None, None, "b"), P()],
        (2, 2, 2): [P("c", "a", "b"), P(None, ("c", "a"))],
    }
    if dtype != "float32":  # each mesh costs a compilation
        meshes = {(4, 2): [P(("b", "a")), P(None, None, "b")]}
    for shape, specs in meshes.items():
        names = tuple("abc"[: len(shape)])
        mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
        for spec in specs:
            placed = jax.device_put(array, NamedSharding(mesh, spec))
            assert total(placed) == alone, (shape, spec)
            assert on_devices(placed) == alone, (shape, spec)
    assert on_devices(array) == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_any_flipped_bit_changes_the_sum(dtype):
    array = np.asarray(bits_of(dtype, (3, 5)))
    before = total(array)
    size = array.dtype.itemsize
    for bit in range(array.size * size * 8):
        raw = bytearray(array.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        assert total(np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)) != before


def test_each_bit_spreads_over_both_lanes():
    """No bit of an element, high or low, ends in few bits of the sum."""
    zero = np.zeros(1000, np.uint32)
    for bit in (0, 15, 31):
        one = zero.copy()
        one[500] = 1 << bit
        changed = int(total(zero), 16) ^ int(total(one), 16)
        assert bin(changed & 0xFFFFFFFF).count("1") > 4
        assert bin(changed >> 32).count("1") > 4


def test_elements_and_regions_that_change_places_change_the_sum():
    array = np.arange(4096, dtype=np.float32).reshape(64, 64)
    swapped, rolled = array.copy(), np.roll(array, 1)
    swapped[[3, 40]] = swapped[[40, 3]]
    pair = array.copy()
    pair[0, 0], pair[63, 63] = array[63, 63], array[0, 0]
    sums = [total(x) for x in (array, swapped, rolled, pair, array.T)]
    assert len(set(sums)) == len(sums)


def test_minus_zero_is_not_zero():
    assert total(np.float32([0.0])) != total(np.float32([-0.0]))


def test_scalars_and_empty_arrays_have_sums():
    assert total(np.int32(3)) != total(np.int32(4))
    assert total(np.zeros((0, 3), np.float32)) == "0" * 16


def test_the_index_goes_beyond_32_bits():
    """Two places that agree modulo 2^32 are not the same place (traced by parts, never held)."""
    shape = (2**18, 2**16)
    part = jnp.ones((1, 4), jnp.float32)
    places = [(0, 0), (2**16, 0), (2**17, 0), (2**16, 4)]
    sums = {tuple(map(int, integrity.element_sum(part, shape, place))) for place in places}
    assert len(sums) == len(places)


def test_a_sum_moves_nothing_between_devices():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    spread = NamedSharding(mesh, P("a", "b"))
    abstract = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=spread)
    compiled = integrity._summing(spread).lower(abstract).compile().as_text()
    moved = ("all-", "reduce-scatter", "permute", "send", "recv")
    assert not any(word in line for line in compiled.splitlines() for word in moved)


def test_a_sum_begun_before_the_buffers_are_donated_is_of_what_was_there():
    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    array = jax.random.normal(jax.random.key(0), (1024, 1024))
    before, started = total(array), start_sums({"leaf": array})
    overwritten = []
    waiting = threading.Thread(target=lambda: overwritten.append(step(array)))
    waiting.start()  # on a CPU it waits until nobody looks at the buffer
    assert written_sums([own_sums(started)])["leaf"] == before
    waiting.join(60)
    assert float(overwritten[0].max()) == -1
    assert started == {}


def test_digests_go_through_their_file(tmp_path):
    digests = Digests(7, {"a.b": Digest("bfloat16", (2, 3), "0" * 16)}, {"data.json": "ab"})
    integrity.write_digests(tmp_path, digests)
    assert integrity.read_digests(tmp_path) == digests


def test_digests_that_were_changed_are_refused_whatever_they_say(tmp_path):
    digests = Digests(7, {"a.b": Digest("bfloat16", (2, 3), "0" * 16)}, {"data.json": "ab"})
    integrity.write_digests(tmp_path, digests)
    good = (tmp_path / "digests.json").read_text()
    for old, new in (("bfloat16", "float32"), ('"ab"', '"ac"'), ('"step": 7', '"step": 8')):
        changed = good.replace(old, new, 1)
        assert changed != good
        (tmp_path / "digests.json").write_text(changed)
        with pytest.raises(CheckpointError, match=r"damaged; .* file digests\.json"):
            integrity.read_digests(tmp_path)


@pytest.mark.parametrize("text", ['{"format": 2}', '{"format": 9}', '{"format": 2, "step": []}'])
def test_digests_of_another_form_are_refused(tmp_path, text):
    (tmp_path / "digests.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"damaged; .* file digests\.json|digests\.json: format 9"
    ):
        integrity.read_digests(tmp_path)


def test_every_file_is_covered_and_its_loss_noticed(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "large").write_bytes(bytes(integrity.SMALL + 1))
    (tmp_path / "state" / "small").write_text("1")
    (tmp_path / "data.json").write_text("{}")
    files = integrity.file_marks(tmp_path, integrity.files_of(tmp_path))
    assert sorted(files) == ["data.json", "state/large", "state/small"]
    digests = Digests(1, {}, files)
    assert integrity.large_files(tmp_path, digests) == ["state/large"]
    assert integrity.damaged_files(tmp_path, digests, files) == []
    (tmp_path / "data.json").write_text("{ }")
    (tmp_path / "state" / "small").unlink()
    (tmp_path / "state" / "large").write_bytes(bytes(integrity.SMALL) + b"1")
    assert integrity.damaged_files(tmp_path, digests, files) == list(files)


def test_sizes_that_an_early_version_noted_are_compared(tmp_path):
    (tmp_path / "large").write_bytes(b"12345")
    for mark, damaged in (("5 bytes", []), ("6 bytes", ["large"])):
        digests = Digests(1, {}, {"large": mark})
        assert integrity.damaged_files(tmp_path, digests, ["large"]) == damaged


def test_a_link_out_of_the_folder_is_refused_wherever_it_stands(tmp_path):
    step = tmp_path / "step"
    (step / "state" / "d").mkdir(parents=True)
    (tmp_path / "secret").touch()
    (step / "state" / "own").symlink_to("d")
    integrity.refuse_unsafe(step)
    for name in ("state/d/data", "state/manifest.ocdbt", "tokenizer"):
        (step / name).symlink_to(tmp_path / "secret")
        with pytest.raises(CheckpointError, match=f"{name}', which lies outside"):
            integrity.refuse_unsafe(step)
        (step / name).unlink()


@pytest.mark.parametrize("name", ["_METADATA", "_sharding", "manifest.ocdbt", "process_0"])
def test_metadata_far_too_large_is_refused_by_its_size(tmp_path, name):
    (tmp_path / "array_metadatas").mkdir()
    path = tmp_path / ("array_metadatas" if name == "process_0" else "") / name
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes, where"):
        integrity.refuse_unsafe(tmp_path)
