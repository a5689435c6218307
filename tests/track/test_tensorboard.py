"""Event files as another implementation of the format, tensorboardX, reads and writes them."""

import math
import struct

import pytest

from lm.errors import ResourceError
from lm.track.tensorboard import TensorBoard, event, record

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
from tensorboardX.record_writer import RecordWriter  # noqa: E402


def events(file):
    """The events of a file, whose checksums are those that tensorboardX writes."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        content = data[at + 12 : at + 12 + size]
        theirs = file.with_suffix(".theirs")
        writer = RecordWriter(str(theirs))
        writer.write(content)
        writer.close()
        assert data[at : at + size + 16] == theirs.read_bytes()
        theirs.unlink()
        found.append(event_pb2.Event.FromString(content))
        at += size + 16
    return found


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: all events but those that a later start voids."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        first, *rest = events(file)
        assert first.file_version == "brain.Event:2"
        for one in rest:
            if one.session_log.status == event_pb2.SessionLog.START:
                for values in found.values():
                    for step in [s for s in values if s >= one.step]:
                        del values[step]
            for value in one.summary.value:
                found.setdefault(value.tag, {})[one.step] = value.simple_value
    return {tag: sorted(values.items()) for tag, values in found.items()}


def write(folder, steps, *, restored_step=0):
    tracker = TensorBoard(folder, restored_step=restored_step)
    for step in steps:
        tracker(step, {"train/loss": 0.5 * step, "a": None})
    tracker.close()
    tracker.close()


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    write(tmp_path / "tb", range(1, 8))
    write(tmp_path / "tb", range(6, 10), restored_step=5)
    assert scalars(tmp_path / "tb") == {"train/loss": [(n, 0.5 * n) for n in range(1, 10)]}


@pytest.mark.parametrize("step", [0, 1, 127, 128, 21_400, 2**40])
def test_any_step_and_many_values_survive(step):
    values = {f"eval/Stück {n}/loss": float(n) for n in range(300)}
    read = event_pb2.Event.FromString(event(step, values=values))
    assert read.step == step
    assert {v.tag: v.simple_value for v in read.summary.value} == values
    assert read.wall_time > 1.7e9


def test_numbers_beyond_float32_do_not_stop_a_run():
    values = {"a": math.nan, "b": 1e300, "c": -1e300, "d": math.inf}
    read = event_pb2.Event.FromString(event(1, values=values))
    shown = {v.tag: v.simple_value for v in read.summary.value}
    assert math.isnan(shown.pop("a"))
    assert shown == {"b": math.inf, "c": -math.inf, "d": math.inf}


def test_a_known_checksum():
    """The length 0 of an empty record: crc32c of eight zero bytes is 0x8c28b28a."""
    crc = 0x8C28B28A
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert record(b"")[8:12] == struct.pack("<I", masked)


def test_numbers_are_on_the_disk_after_flush(tmp_path):
    tracker = TensorBoard(tmp_path / "tb")
    tracker(1, {"train/loss": 2.0})
    tracker.flush()
    assert scalars(tmp_path / "tb") == {"train/loss": [(1, 2.0)]}
    tracker.close()


def test_a_file_in_the_way_is_the_users_to_mend(tmp_path):
    (tmp_path / "tb").write_text("")
    with pytest.raises(ResourceError, match="tb: cannot be written"):
        TensorBoard(tmp_path / "tb")
