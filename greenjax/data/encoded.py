"""Images as they are stored, decoded late and only as far as their view needs.

A view draws its crop from the size of the image alone, which a JPEG has in its first bytes. So the decoder leaves out
the rows below the crop, and shrinks a large photograph whose crop shrinks by two or more in a fraction of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Num

from greenjax.data.jpeg import JpegHeader, jpeg_header
from greenjax.data.reading import PICTURE, Box, Buffer, Part, Reading, Size
from greenjax.data.tiff import TIFFS
from greenjax.errors import InputError

LARGE = 1 << 24  # bytes of a file from which a view reads no more than it needs
FACTORS = (1, 2, 4, 8)  # by which a decoder shrinks a JPEG


class DecodeError(Exception):
    """An image that cannot be read or decoded; the message names the file."""


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file, and its name in errors."""

    data: Buffer
    name: str

    @cached_property
    def header(self) -> JpegHeader | None:
        return jpeg_header(self.data)

    def decode(self, factor: int = 1, rows: int | None = None, reading: Reading = PICTURE) -> Num[np.ndarray, "h w c"]:
        """The pixels that `reading` asks for. Applies EXIF rotation, ignores ICC profiles.

        As uint8 takes the upper 8 of 16 bits of grey and RGB. Shrinks a JPEG by `factor`, one of FACTORS, and may leave
        out rows below the first `rows`. Raises DecodeError, also for pixels of another type than that of `reading`;
        InputError where the package is missing that reads the file.
        """
        from greenjax.data import decoding  # loads OpenCV, which settings of sources do without

        try:
            return taken(decoding.decode(self.data, self.header, factor, rows, reading), reading)
        except ValueError as error:
            raise self._named(error) from error

    def decode_part(self, part: Part, reading: Reading) -> tuple[Num[np.ndarray, "h w c"], Size] | None:
        """The pixels of a part and its new size, decoded without the rest; None where that cannot be."""
        if self.data[:4] not in TIFFS or (reading.of_picture and len(self.data) < LARGE):
            return None
        from greenjax.data import decoding

        try:
            found = decoding.decode_part(self.data, part, reading)
            return found and (taken(found[0], reading), found[1])
        except ValueError as error:
            if isinstance(error, InputError) and reading.of_picture:  # Pillow reads these without the missing package
                return None
            raise self._named(error) from error

    def _named(self, error: ValueError) -> Exception:
        """The error of a reader, with the name of the file; an InputError says that the reader is not installed."""
        why = f": {error}" if str(error) else ""
        kind = InputError if isinstance(error, InputError) else DecodeError
        return kind(f"{self.name} cannot be decoded as an image{why}")


@dataclass(frozen=True)
class Opened(Encoded):
    """An image that Pillow opened, read as its file would be."""

    image: Any = None

    def decode(self, factor: int = 1, rows: int | None = None, reading: Reading = PICTURE) -> Num[np.ndarray, "h w c"]:
        """As of a file, but whole and as large as it is."""
        from greenjax.data import decoding

        try:
            return taken(decoding.by_opened(self.image, reading), reading)
        except ValueError as error:
            raise DecodeError(f"{self.name} cannot be used: {error}") from error


Image = Num[np.ndarray, "h w c"] | Encoded


def taken(pixels: Num[np.ndarray, "h w c"], reading: Reading) -> Num[np.ndarray, "h w c2"]:
    """The channels of an image that `reading` asks for. Raises ValueError for a missing one and for another type."""
    if pixels.dtype.name != reading.dtype:
        found = f"its pixels are {pixels.dtype.name} of {pixels.shape[2]} channels"
        raise ValueError(f"{found}: expected {reading.dtype} (data.dtype)")
    if reading.bands not in (None, 0, pixels.shape[2]):
        raise ValueError(
            f"it has {pixels.shape[2]} channels: expected {reading.bands} (model.in_channels); data.channels takes some"
        )
    if not reading.channels:
        return pixels
    if max(reading.channels) >= pixels.shape[2]:
        raise ValueError(
            f"it has {pixels.shape[2]} channels: expected more than {max(reading.channels)} (data.channels)"
        )
    return np.take(pixels, reading.channels, axis=2)


@runtime_checkable
class Images(Protocol):
    """Images by index. A method `encoded(index)` saves time where a source has it (see `undecoded`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Num[np.ndarray, "h w c"]:
        """One image. Raises DecodeError."""
        ...


class Undecoded:
    """Images by index, with labels or without: `encoded(index)` gives them as stored, [index] decodes them."""

    def encoded(self, index: int) -> Any:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        """Image `index` as a picture, or the picture and its label. Raises DecodeError."""
        return decoded(self.encoded(index))


def undecoded(source: Any, index: int) -> Any:
    """Image `index` of a source, or the image and its label; not yet decoded where the source has `encoded`."""
    read = getattr(source, "encoded", None)
    return source[index] if read is None else read(index)


def decoded(item: Any) -> Any:
    """An image, or an image and its label, with the image decoded as a picture. Raises DecodeError."""
    if isinstance(item, tuple):
        return decoded(item[0]), item[1]
    return item.decode() if isinstance(item, Encoded) else item


def load(image: Image, part: Part, reading: Reading = PICTURE) -> tuple[Num[np.ndarray, "h2 w2 c2"], Size]:
    """The pixels of a part of an image, as few as its view needs, and the part's new size. Raises DecodeError."""
    if isinstance(image, Encoded) and (found := image.decode_part(part, reading)) is not None:
        return found
    if not isinstance(image, Encoded) or image.header is None:
        pixels, factor = whole(image, reading), 1
        size = size_of(pixels)
    else:
        size = (image.header.height, image.header.width)
        # A decoder that shrinks would mix pixels without data into others.
        factor, rows = extent(part, size) if reading.no_data == "none" else (1, None)
        pixels = image.decode(factor, rows, reading)
        if pixels.shape[1] != -(-size[1] // factor):  # turned by its EXIF data
            size = size[1], size[0]
    box, new_size = part(size)
    return pixels if box == (0, 0, *size) else cut(pixels, box, factor), new_size


def whole(image: Image, reading: Reading) -> Num[np.ndarray, "h2 w2 c2"]:
    """All pixels of an image. Raises DecodeError."""
    if isinstance(image, Encoded):
        return image.decode(reading=reading)
    try:
        return taken(image, reading)
    except ValueError as error:
        raise DecodeError(str(error)) from error


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


def cut(pixels: Num[np.ndarray, "h w c"], box: Box, factor: int) -> Num[np.ndarray, "h2 w2 c"]:
    """The pixels of a box of an image; the decoder shrank `pixels` by `factor`."""
    top, left, height, width = box if factor == 1 else (round(side / factor) for side in box)
    return pixels[top : top + height, left : left + width]


def size_of(image: Num[np.ndarray, "h w c"]) -> Size:
    return image.shape[0], image.shape[1]
