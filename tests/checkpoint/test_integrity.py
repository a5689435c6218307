import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.checkpoint import integrity
from lm.checkpoint.integrity import Digest, Digests, read_sums, start_sums
from lm.errors import CheckpointError

DTYPES = ["float32", "bfloat16", "int32", "uint32", "int8", "bool"]


def total(array):
    return read_sums(start_sums({"leaf": jnp.asarray(array)}))["leaf"]


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
            assert total(jax.device_put(array, NamedSharding(mesh, spec))) == alone, (shape, spec)


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


def test_a_sum_moves_no_more_than_itself_between_devices():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    spread = NamedSharding(mesh, P("a", "b"))
    abstract = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=spread)
    compiled = integrity._summing(spread).lower(abstract).compile().as_text()
    lines = [line for line in compiled.splitlines() if "all-" in line or "permute" in line]
    assert any("all-reduce" in line for line in lines)
    assert not any("all-gather" in line or "all-to-all" in line for line in lines)
    assert all("u32[2]" in line for line in lines if "all-reduce(" in line)


def test_digests_go_through_their_file(tmp_path):
    digests = Digests(7, {"a.b": Digest("bfloat16", (2, 3), "0" * 16)}, {"data.json": "ab"})
    integrity.write_digests(tmp_path, digests)
    assert integrity.read_digests(tmp_path) == digests


@pytest.mark.parametrize("text", ['{"format": 1}', '{"format": 9}', '{"format": 1, "step": []}'])
def test_digests_of_another_form_are_refused(tmp_path, text):
    (tmp_path / "digests.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"digests.json: (damaged|format)"):
        integrity.read_digests(tmp_path)


def test_every_file_is_covered_and_its_loss_noticed(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "large").write_bytes(bytes(integrity.SMALL + 1))
    (tmp_path / "state" / "small").write_text("1")
    (tmp_path / "data.json").write_text("{}")
    files = integrity.file_marks(tmp_path)
    assert sorted(files) == ["data.json", "state/large", "state/small"]
    assert files["state/large"] == f"{integrity.SMALL + 1} bytes"
    digests = Digests(1, {}, files)
    assert integrity.damaged_files(tmp_path, digests) == []
    (tmp_path / "data.json").write_text("{ }")
    (tmp_path / "state" / "small").unlink()
    (tmp_path / "state" / "large").write_bytes(bytes(integrity.SMALL + 2))
    assert integrity.damaged_files(tmp_path, digests) == list(files)
