"""Images as they are stored: decoded late, and no finer than their view needs.

A view draws its crop from the size of the image alone, which stands in the first bytes of a JPEG. So the rows below the
crop are not decoded; and where the crop of a large photograph shrinks by two or more, the decoder shrinks it in a
fraction of the time.

OpenCV decodes JPEG, PNG and WebP, faster than Pillow. Pillow decodes the formats of which OpenCV reads some files
wrongly: OpenCV multiplies a TIFF by its alpha, wraps signed pixels round, reads any PNM as one of 255 levels and a
24-bit OS/2 bitmap as grey, shows transparent pixels of a GIF in another colour and ignores the rotation of an AVIF.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

Size = tuple[int, int]  # height, width in pixels

FORMATS = ("AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")  # decoded by Pillow
# The mode to which a Pillow image is converted, by its own mode; transparency is dropped.
MODES = {"1": "L", "L": "L", "LA": "L"} | dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"), "RGB")
# Left to OpenCV, which takes the upper 8 of 16 bits, as it does in a PNG; Pillow rounds them.
DEEP_PNM = re.compile(rb"P[2356]((\s|#.*\n)+\d+){2}(\s|#.*\n)+65535\s")
BITS, PHOTOMETRIC, PLANES, KIND = 258, 262, 284, 339  # tags of a TIFF
KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}  # values of KIND
WHITE_IS_ZERO, SEPARATE = 0, 2  # values of PHOTOMETRIC and PLANES
PIL.Image.MAX_IMAGE_PIXELS = 1 << 29  # pixels; Pillow refuses twice as many, as OpenCV does
# DecodeError names an image that cannot be decoded in one line; the decoders print nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="PIL")

# Decoder flags by factor. In spite of their name they leave colours to the other flags.
REDUCED = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
REDUCED[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8
BLOCK = 16  # rows in which most JPEGs are decoded; leaving out fewer saves nothing
# Markers of JPEG segments. FRAMES: headers of frames that can be shrunk, which lossless ones cannot.
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
BASELINE, SCAN, RESTART, EXIF = 0xC0, 0xDA, 0xDD, 0xE1


class DecodeError(Exception):
    """An image that cannot be read or decoded; the message names the file."""


class JpegHeader(NamedTuple):
    """Size and channels in the header of a JPEG, before the rotation that its EXIF data ask for."""

    height: int
    width: int
    channels: int
    height_at: int  # byte offset of the height, if decoding may end above the last row; else 0


class Need(NamedTuple):
    """The part of an image that a view needs, and its resolution."""

    rows: int  # from the top
    spare: float  # pixels of the image for one of the view, along the axis with fewer


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

        Decodes the first of several images in a file (pages, frames). Shrinks a JPEG by `factor`, 1, 2, 4 or 8, and may
        leave out rows below the first `rows`. Raises DecodeError, also for pixels that are neither grey nor RGB.
        """
        header, data = self.header, self.data
        if not for_opencv(data):
            return self._decode_by_pillow()
        colour = header is not None and header.channels > 1
        flags = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_ANYCOLOR  # the latter keeps grey, but gives BGR
        if header is not None:
            flags |= REDUCED[factor]
            last = header.height if rows is None else rows + 2  # the colour of the next row smooths that of the last
            if header.height_at and (last - 1) // BLOCK < (header.height - 1) // BLOCK:
                data = without_rows(data, header, last)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:  # no bytes, or an impossible size
            image = None
        if image is None:
            raise DecodeError(f"{self.name} cannot be decoded as an image")
        if image.ndim == 2:
            return image[:, :, None]
        return image if colour else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def _decode_by_pillow(self) -> UInt8[np.ndarray, "h w c"]:
        try:
            with PIL.Image.open(io.BytesIO(self.data), formats=FORMATS) as image:
                return pixels_of(image)
        except Exception as error:  # a damaged file has Pillow raise errors of many classes
            why = "" if isinstance(error, PIL.UnidentifiedImageError) else f": {' '.join(str(error).split())}"
            raise DecodeError(f"{self.name} cannot be decoded as an image{why}") from error


Image = UInt8[np.ndarray, "h w c"] | Encoded


@runtime_checkable
class Images(Protocol):
    """Images by index, RGB or grey: all that a loader needs. `undecoded` says which method saves time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """One image, c = 1 or 3. Raises DecodeError."""
        ...


class Undecoded:
    """Images, or images with labels, by index: decoded by [index], not yet decoded by `encoded(index)`."""

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


def load(image: Image, need: Callable[[Size], Need]) -> tuple[UInt8[np.ndarray, "h w c"], Size, int]:
    """The pixels of an image, as few as its view needs; its full size; and the factor by which the decoder shrank it.

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
    """The factor by which to shrink a JPEG of `size` in the decoder, and the number of rows to decode; None: all.

    EXIF data may turn the image, which changes its view: the factor suits both.
    """
    needed = need(size)
    if needed.spare < 2:
        return 1, needed.rows
    spare = min(needed.spare, need((size[1], size[0])).spare)  # below 1: the view of the turned image is enlarged
    factor = max((factor for factor in REDUCED if factor <= spare), default=1)
    return factor, needed.rows if factor == 1 else None


def for_opencv(data: bytes) -> bool:
    """Whether OpenCV reads all files of this format rightly."""
    start = data[:12]
    if start[:2] == b"\xff\xd8" or start[:8] == b"\x89PNG\r\n\x1a\n":
        return True
    return (start[:4], start[8:]) == (b"RIFF", b"WEBP") or DEEP_PNM.match(data) is not None


def pixels_of(image: PIL.Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """Grey or RGB pixels of a file that Pillow opened. Raises ValueError for pixels that are neither."""
    bits, inverted = 16, False
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        bits, kind = max(tags.get(BITS, (1,))), KINDS.get(max(tags.get(KIND, (1,))), "untyped")
        if kind != "unsigned" or bits > 16 or (bits > 8 and tags.get(PLANES) == SEPARATE):
            planes = " in separate planes" * (tags.get(PLANES) == SEPARATE)
            raise ValueError(f"its pixels are {kind} of {bits} bits{planes}: expected unsigned ones of 8 or 16 bits")
        inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO  # Pillow inverts up to 8 bits itself
    image.load()
    PIL.ImageOps.exif_transpose(image, in_place=True)
    image.info.pop("transparency", None)
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        pixels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)[:, :, None]
        return ~pixels if inverted else pixels
    mode = MODES.get(image.mode)
    if mode is None:
        raise ValueError(f"its pixels are of mode {image.mode!r}: expected 8 or 16 bits of grey or RGB")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


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
            if header is None or not header.height or not header.width:  # no decoder takes such a size
                return None
            return header if plain else header._replace(height_at=0)
        if marker in FRAMES:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            header = JpegHeader(height, width, data[at + 9], at + 5)
            plain = plain and marker == BASELINE
        elif marker in (EXIF, RESTART) or data[at + 4 : at + 8] == b"MPF\0":  # the index of several images
            plain = False
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])  # fill bytes; the segment's length
    return None


def without_rows(data: bytes, header: JpegHeader, height: int) -> bytearray:
    """The JPEG with a smaller height in its header: the decoder stops there.

    The end marker is cut off as well: the decoder would search for it, and warn of the bytes that it skips.
    """
    shorter = bytearray(data)
    del shorter[-2:]
    shorter[header.height_at : header.height_at + 2] = height.to_bytes(2, "big")
    return shorter
