"""Images as they are stored: decoded late, and no finer than their view needs.

A view draws its crop from the image's size alone, which a JPEG tells in its first bytes. Where the crop of a large
photograph is going to shrink by two or more, the decoder shrinks it, at a fraction of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

Size = tuple[int, int]  # height, width in pixels

# Flags of the decoder by the factor; the name is misleading, colours stay as other flags have them.
REDUCED = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
REDUCED[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's frame header


class DecodeError(Exception):
    """An image that cannot be read or decoded; the message names the file."""


class JpegHeader(NamedTuple):
    """What a JPEG says of itself, before any rotation that its EXIF data ask for."""

    height: int
    width: int
    channels: int


@dataclass(frozen=True)
class Encoded:
    """A file's bytes, and the name that errors give it."""

    data: bytes
    name: str

    def decode(self, factor: int = 1) -> UInt8[np.ndarray, "h w c"]:
        """RGB or grey; a JPEG shrunk by 1, 2, 4 or 8. Drops transparency, makes 8 bits of 16, applies EXIF rotation.

        Raises DecodeError.
        """
        header = jpeg_header(self.data)
        colour = header is not None and header.channels > 1
        flags = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_ANYCOLOR  # the latter keeps grey as it is, but has BGR
        flags |= 0 if header is None else REDUCED[factor]
        try:
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)
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


def load(image: Image, spare: Callable[[Size], float]) -> tuple[UInt8[np.ndarray, "h w c"], Size]:
    """The pixels of an image, as few as its view needs, and the size that it has in full.

    `spare` says, for an image of some size, how many of its pixels become one of the view, along the axis that has
    fewer. Raises DecodeError.
    """
    if not isinstance(image, Encoded):
        return image, size_of(image)
    header = jpeg_header(image.data)
    if header is None or (most := spare((header.height, header.width))) < 2:
        pixels = image.decode()
        return pixels, size_of(pixels)
    # EXIF data may turn the image, and then the view is another one: the factor is one that suits both.
    most = min(most, spare((header.width, header.height)))
    factor = max(factor for factor in REDUCED if factor <= max(most, 1))
    pixels = image.decode(factor)
    turned = (pixels.shape[0] > pixels.shape[1]) != (header.height > header.width)
    full = (header.width, header.height) if turned else (header.height, header.width)
    return pixels, full if factor > 1 else size_of(pixels)


def size_of(image: UInt8[np.ndarray, "h w c"]) -> Size:
    return image.shape[0], image.shape[1]


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Size and channels of a JPEG; None for anything else. Costs two microseconds."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in FRAMES:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            return JpegHeader(height, width, data[at + 9])
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])  # fill bytes; the segment's length
    return None
