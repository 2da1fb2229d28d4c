"""Files that grow while a run goes on: lines of metrics.jsonl, and the events that TensorBoard reads."""

import socket
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from PIL import Image


class GrowingFile:
    """Takes what is added to its end. What a full disk does not take is kept, and written with what comes next.

    Nothing is lost or torn when there is room again, and `add` never raises OSError: a run outlives its log.
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
        """A last try for what is missing."""
        if self._rest:
            self.add(b"")
        if self._rest:
            logging.warning("%s lacks its last %d bytes", self._path, len(self._rest))


class Board:
    """Events for TensorBoard, in this thread: tensorboardX's own writer stops for ever where a disk is full."""

    def __init__(self, folder: Path, purge_step: int | None = None):
        """`purge_step`: events of this step and later ones, written before, no longer count."""
        self._proto, self._crc = _protocol()
        self._file = GrowingFile(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}")
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            self._add(step=purge_step, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._summary(step, [{"tag": tag, "simple_value": float(value)} for tag, value in values.items()])

    def image(self, step: int, tag: str, png: Path) -> None:
        """A picture, by the path of a PNG."""
        with Image.open(png) as opened:
            size = dict(width=opened.width, height=opened.height, colorspace=len(opened.getbands()))
        picture = size | {"encoded_image_string": png.read_bytes()}
        self._summary(step, [{"tag": tag, "image": picture}])

    def close(self) -> None:
        self._file.close()

    def _summary(self, step: int, values: list[dict[str, Any]]) -> None:
        self._add(step=step, summary={"value": values})

    def _add(self, **fields: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        parts = (length, self._checked(length), event, self._checked(event))  # TFRecord
        self._file.add(b"".join(parts))

    def _checked(self, data: bytes) -> bytes:
        return struct.pack("<I", self._crc(data))


def _protocol() -> tuple[Any, Any]:
    """tensorboardX's messages and its checksum, without PyTorch, which it imports where it can: that takes a second."""
    blocked = "torch" not in sys.modules
    if blocked:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it raises ImportError
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
    finally:
        if blocked:
            del sys.modules["torch"]
    return event_pb2, masked_crc32c
