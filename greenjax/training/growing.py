"""Files that grow while a run goes on: lines of metrics.jsonl, and the events that TensorBoard reads."""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from absl import logging
from PIL import Image


class GrowingFile:
    """A file that `add` appends to. Data that a full disk does not take are kept, and written before the next.

    So nothing is lost or torn once there is room again, and `add` never raises OSError: a run outlives its log.
    """

    def __init__(self, path: Path):
        self._path, self._rest, self._failing = path, b"", False

    def add(self, data: bytes) -> None:
        self._rest += data
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                while self._rest:
                    self._rest = self._rest[file.write(self._rest) :]
            self._failing = False
        except OSError as error:
            if not self._failing:
                logging.warning("%s cannot be written (%s): what is missing follows later", self._path, error.strerror)
            self._failing = True

    def close(self) -> None:
        """Tries a last time to write the rest."""
        if self._rest:
            self.add(b"")
        if self._rest:
            logging.warning("%s lacks its last %d bytes", self._path, len(self._rest))


class Board:
    """Writes events for TensorBoard: tensorboardX stops for ever where a disk is full, and imports PyTorch.

    An event file is a row of TFRecords, each an Event of tensorflow/core/util/event.proto.
    """

    def __init__(self, folder: Path, purge_step: int):
        """TensorBoard forgets events of `purge_step` and later steps that were written before."""
        self._file = GrowingFile(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}")
        self._add(0, _field(3, b"brain.Event:2"))
        self._add(purge_step, _field(7, _field(1, 1)))  # session_log: START

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._summary(step, [_field(1, tag.encode()) + _field(2, float(value)) for tag, value in values.items()])

    def image(self, step: int, tag: str, png: Path) -> None:
        """Adds a picture, by the path of a PNG."""
        with Image.open(png) as opened:
            shape = (opened.height, opened.width, len(opened.getbands()), png.read_bytes())
        image = b"".join(_field(number, value) for number, value in enumerate(shape, 1))
        self._summary(step, [_field(1, tag.encode()) + _field(4, image)])

    def close(self, done: bool = True) -> None:
        del done
        self._file.close()

    def _summary(self, step: int, values: list[bytes]) -> None:
        self._add(step, _field(5, b"".join(_field(1, value) for value in values)))

    def _add(self, step: int, content: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + _field(2, step) + content
        length = struct.pack("<Q", len(event))
        self._file.add(length + _checksum(length) + event + _checksum(event))


def _field(number: int, value: int | float | bytes) -> bytes:
    """A field of a Protocol Buffers message: a whole number, a float of 32 bits, or bytes."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    return bytes([value & 127 | 128]) + _varint(value >> 7) if value > 127 else bytes([value])


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of TFRecords."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [entry >> 1 ^ (0x82F63B78 if entry & 1 else 0) for entry in table]
    return table


_CRC = _crc_table()  # of each byte
