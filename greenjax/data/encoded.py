"""Images as they are stored: decoded late, and no finer than their view needs.

A view draws its crop from the image's size alone, which a JPEG tells in its first bytes. So the rows below the crop
need not be decoded; and where the crop of a large photograph is going to shrink by two or more, the decoder shrinks it
in a fraction of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

Size = tuple[int, int]  # height, width in pixels

# Flags of the decoder by the factor; the name is misleading, colours stay as other flags have them.
REDUCED = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
REDUCED[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8
BLOCK = 16  # rows that most JPEGs are decoded by; fewer are not worth leaving out
# Markers of a JPEG's segments: frame headers, the one of the plainest kind; and three more.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BASELINE, SCAN, RESTART, EXIF = 0xC0, 0xDA, 0xDD, 0xE1


class DecodeError(Exception):
    """An image that cannot be read or decoded; the message names the file."""


class JpegHeader(NamedTuple):
    """What a JPEG says of itself, before any rotation that its EXIF data ask for."""

    height: int
    width: int
    channels: int
    height_at: int  # where in the file the height is, if decoding may end above the last row; else 0


class Need(NamedTuple):
    """What a view needs of an image of some size."""

    rows: int  # from the top
    spare: float  # how many pixels become one of the view, along the axis that has fewer


@dataclass(frozen=True)
class Encoded:
    """A file's bytes, and the name that errors give it."""

    data: bytes
    name: str

    @cached_property
    def header(self) -> JpegHeader | None:
        return jpeg_header(self.data)

    def decode(self, factor: int = 1, rows: int | None = None) -> UInt8[np.ndarray, "h w c"]:
        """RGB or grey. Drops transparency, makes 8 bits of 16, applies EXIF rotation.

        A JPEG is shrunk by 1, 2, 4 or 8, and may end anywhere below its first `rows`. Raises DecodeError.
        """
        header, data = self.header, self.data
        colour = header is not None and header.channels > 1
        flags = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_ANYCOLOR  # the latter keeps grey as it is, but has BGR
        if header is not None:
            flags |= REDUCED[factor]
            last = header.height if rows is None else rows + 2  # the next row's colour smoothes the last one's
            if header.height_at and (last - 1) // BLOCK < (header.height - 1) // BLOCK:
                data = without_rows(data, header, last)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:  # no bytes at all, or sizes that no image has
            image = None
        if image is None:
            raise DecodeError(f"{self.name} cannot be decoded as an image")
        if image.ndim == 2:
            return image[:, :, None]
        return image if colour else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


Image = UInt8[np.ndarray, "h w c"] | Encoded


def undecoded(source: Any, index: int) -> Any:
    """What a source has at `index`; its image not yet decoded where it has a method `encoded` that gives it so."""
    read = getattr(source, "encoded", None)
    return source[index] if read is None else read(index)


def decoded(image: Image) -> UInt8[np.ndarray, "h w c"]:
    return image.decode() if isinstance(image, Encoded) else image


def load(image: Image, need: Callable[[Size], Need]) -> tuple[UInt8[np.ndarray, "h w c"], Size, int]:
    """The pixels of an image, as few as its view needs; the size that it has in full; by what it was shrunk.

    Raises DecodeError.
    """
    if not isinstance(image, Encoded):
        return image, size_of(image), 1
    header = image.header
    if header is None:
        pixels = image.decode()
        return pixels, size_of(pixels), 1
    size, turned_size = (header.height, header.width), (header.width, header.height)
    factor, rows = extent(need, size)
    pixels = image.decode(factor, rows)
    turned = pixels.shape[1] != -(-header.width // factor)
    return pixels, turned_size if turned else size, factor


def extent(need: Callable[[Size], Need], size: Size) -> tuple[int, int | None]:
    """By what to shrink a JPEG of `size` while it is decoded, and how many of its rows to decode; None: all.

    EXIF data may turn the image, and then its view is another one: the factor suits both.
    """
    needed = need(size)
    if needed.spare < 2:
        return 1, needed.rows
    spare = min(needed.spare, need((size[1], size[0])).spare)  # below 1 where the view of the turned image is enlarged
    factor = max((factor for factor in REDUCED if factor <= spare), default=1)
    return factor, needed.rows if factor == 1 else None


def size_of(image: UInt8[np.ndarray, "h w c"]) -> Size:
    return image.shape[0], image.shape[1]


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Size and channels of a JPEG; None for anything else. Costs a few microseconds."""
    if data[:2] != b"\xff\xd8":
        return None
    header, at = None, 2
    plain = data[-2:] == b"\xff\xd9"  # one scan from top to bottom, then the end
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == SCAN:
            plain = plain and header is not None and data[at + 4] == header.channels
            return header._replace(height_at=header.height_at if plain else 0) if header else None
        if marker in FRAMES:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            header = JpegHeader(height, width, data[at + 9], at + 5)
            plain = plain and marker == BASELINE
        elif marker in (EXIF, RESTART):
            plain = False
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])  # fill bytes; the segment's length
    return None


def without_rows(data: bytes, header: JpegHeader, height: int) -> bytearray:
    """A JPEG that says of itself that it has fewer rows than it has: the decoder stops there.

    The mark of the end is cut off: looking for it, the decoder would warn of what lies between. It does not without.
    """
    shorter = bytearray(data)
    del shorter[-2:]
    shorter[header.height_at : header.height_at + 2] = height.to_bytes(2, "big")
    return shorter
