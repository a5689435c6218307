"""TensorBoard event files, written directly.

The format is small: a file of records (length, checksum, bytes, checksum), each a protocol buffer
of five kinds of field.  A library for it, tensorboardX, imports PyTorch wherever that is
installed, which takes longer than all the rest of a start, and hands each number to a thread.
"""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from lm.errors import ResourceError
from lm.track.patient import PatientFile

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
"""How protocol buffers mark what a field is stored as."""


class TensorBoard:
    """A tracker that writes a scalar for each number, one event a step."""

    def __init__(self, folder: Path, *, restored_step: int = 0):
        """Go on in ``folder``; TensorBoard hides what was written beyond ``restored_step``.

        Raises:
            ResourceError: the folder cannot be written.
        """
        self.folder = folder
        try:
            earlier = folder.exists()
            folder.mkdir(exist_ok=True)
            # Nanoseconds: two starts within a second must not share a file.
            name = f"events.out.tfevents.{time.time():.9f}.{socket.gethostname()}"
            self.file = PatientFile(folder / name)
        except OSError as error:
            self._refuse(error)
        self.file.write(record(event(0, version="brain.Event:2")))
        if earlier:
            self.file.write(record(event(restored_step + 1, starts=True)))

    def __call__(self, step: int, metrics: Mapping[str, int | float | None]) -> None:
        """Write each number that there is, or hold it back while the disk takes none.

        Raises:
            ResourceError: the disk took none for very long.
        """
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        self.file.write(record(event(step, values=values)))

    def flush(self) -> None:
        """Return once every number is on the disk, if it takes any."""
        self.file.flush()

    def close(self) -> None:
        """Flush and close the file; a second time does nothing.

        Raises:
            ResourceError: the disk does not take the last numbers.
        """
        self.file.close()

    def _refuse(self, error: OSError) -> NoReturn:
        raise ResourceError(
            f"{self.folder}: cannot be written ({error.strerror or error}). Free some disk, choose "
            "another folder with --runs, or set tracking.tensorboard to False."
        ) from error


def event(
    step: int,
    *,
    values: Mapping[str, float] | None = None,
    version: str | None = None,
    starts: bool = False,
) -> bytes:
    """An ``Event`` of TensorBoard's event.proto, at this moment.

    Args:
        step: the step it belongs to.
        values: the scalars of the step, as float32.
        version: the format's name, for a file's first event.
        starts: whether a run starts here again: later steps seen before it are void.
    """
    parts = [_field(1, EIGHT_BYTES) + struct.pack("<d", time.time())]
    parts.append(_field(2, VARINT) + _varint(step))
    if version is not None:
        parts.append(_bytes(3, version.encode()))
    if values:
        scalars = (
            _bytes(1, name.encode()) + _field(2, FOUR_BYTES) + _float32(value)
            for name, value in values.items()
        )
        parts.append(_bytes(5, b"".join(_bytes(1, scalar) for scalar in scalars)))
    if starts:
        parts.append(_bytes(7, _field(1, VARINT) + _varint(1)))
    return b"".join(parts)


def record(data: bytes) -> bytes:
    """A record of TensorFlow's file format: length, its checksum, the data, its checksum."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc32c(length) + data + _masked_crc32c(data)


def _field(number: int, kind: int) -> bytes:
    return bytes([number << 3 | kind])


def _bytes(number: int, data: bytes) -> bytes:
    return _field(number, LENGTH) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # beyond float32
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _crc_table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli, reflected) of each byte."""
    table: list[int] = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC = _crc_table()


def _masked_crc32c(data: bytes) -> bytes:
    """The checksum as the format wants it: rotated, and moved by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
