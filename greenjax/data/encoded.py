"""Images as they are stored, decoded late and only as far as their view needs.

A view draws its crop from the size of the image alone, which a JPEG has in its first bytes. So the decoder leaves out
the rows below the crop, and shrinks a large photograph whose crop shrinks by two or more in a fraction of the time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from greenjax.data.jpeg import JpegHeader, jpeg_header

Size = tuple[int, int]  # height, width in pixels
Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Part = Callable[[Size], tuple[Box, Size]]  # by an image's size: the part of it that a view shows, and its new size

FACTORS = (1, 2, 4, 8)  # by which a decoder shrinks a JPEG


class DecodeError(Exception):
    """An image that cannot be read or decoded; the message names the file."""


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file, and its name in errors."""

    data: bytes
    name: str

    @cached_property
    def header(self) -> JpegHeader | None:
        return jpeg_header(self.data)

    def decode(self, factor: int = 1, rows: int | None = None) -> UInt8[np.ndarray, "h w c"]:
        """RGB or grey. Drops transparency, takes the upper 8 of 16 bits, applies EXIF rotation, ignores ICC profiles.

        Decodes the first of several images in a file (pages, frames). Shrinks a JPEG by `factor`, one of FACTORS, and
        may leave out rows below the first `rows`. Raises DecodeError, also for pixels that are neither grey nor RGB.
        """
        from greenjax.data import decoding  # loads OpenCV, which settings of sources do without

        try:
            return decoding.decode(self.data, self.header, factor, rows)
        except ValueError as error:
            why = f": {error}" if str(error) else ""
            raise DecodeError(f"{self.name} cannot be decoded as an image{why}") from error


Image = UInt8[np.ndarray, "h w c"] | Encoded


@runtime_checkable
class Images(Protocol):
    """Images by index, RGB or grey. A method `encoded(index)` saves time where a source has it (see `undecoded`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """One image, c = 1 or 3. Raises DecodeError."""
        ...


class Undecoded:
    """Images by index, with labels or without: `encoded(index)` gives them as stored, [index] decodes them."""

    def encoded(self, index: int) -> Any:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        """Image `index`, or the image and its label. Raises DecodeError."""
        return decoded(self.encoded(index))


def undecoded(source: Any, index: int) -> Any:
    """Image `index` of a source, or the image and its label; not yet decoded where the source has `encoded`."""
    read = getattr(source, "encoded", None)
    return source[index] if read is None else read(index)


def decoded(item: Any) -> Any:
    """An image, or an image and its label, with the image decoded. Raises DecodeError."""
    if isinstance(item, tuple):
        return decoded(item[0]), item[1]
    return item.decode() if isinstance(item, Encoded) else item


def load(image: Image, part: Part) -> tuple[UInt8[np.ndarray, "h2 w2 c"], Size]:
    """The pixels of a part of an image, as few as its view needs, and the part's new size. Raises DecodeError."""
    if not isinstance(image, Encoded) or image.header is None:
        pixels, factor = decoded(image), 1
        size = size_of(pixels)
    else:
        size = (image.header.height, image.header.width)
        factor, rows = extent(part, size)
        pixels = image.decode(factor, rows)
        if pixels.shape[1] != -(-size[1] // factor):  # turned by its EXIF data
            size = size[1], size[0]
    box, new_size = part(size)
    return pixels if box == (0, 0, *size) else cut(pixels, box, factor), new_size


def extent(part: Part, size: Size) -> tuple[int, int | None]:
    """The factor by which to shrink a JPEG of `size` in the decoder, and the number of rows to decode; None: all.

    EXIF data may turn the image, which changes its part: the factor suits both.
    """
    (top, _, height, width), new_size = part(size)
    (_, _, *turned), turned_size = part((size[1], size[0]))
    spare = min(shrinkage((height, width), new_size), shrinkage(turned, turned_size))
    factor = max((factor for factor in FACTORS if factor <= spare), default=1)
    return factor, top + height if factor == 1 else None


def shrinkage(size: Sequence[int], new_size: Size) -> float:
    """Pixels of an image or crop for one pixel of its new size, along the axis with fewer."""
    return min(size[0] / new_size[0], size[1] / new_size[1])


def cut(pixels: UInt8[np.ndarray, "h w c"], box: Box, factor: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The pixels of a box of an image; the decoder shrank `pixels` by `factor`."""
    top, left, height, width = box if factor == 1 else (round(side / factor) for side in box)
    return pixels[top : top + height, left : left + width]


def size_of(image: UInt8[np.ndarray, "h w c"]) -> Size:
    return image.shape[0], image.shape[1]
