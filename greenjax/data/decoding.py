"""The pixels of image files: one small reader a format, in one table by the bytes with which files begin.

OpenCV decodes JPEG, PNG and WebP, faster than Pillow. Pillow decodes the formats of which OpenCV reads some files
wrongly: OpenCV multiplies a TIFF by its alpha, wraps signed pixels round, reads any PNM as one of 255 levels and a
24-bit OS/2 bitmap as grey, shows transparent pixels of a GIF in another colour and ignores the rotation of an AVIF.
tifffile (data/tiff.py) decodes the TIFFs that are no pictures; NumPy reads its own files.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Num, UInt8

from greenjax.data.jpeg import JpegHeader, without_rows
from greenjax.data.reading import Buffer, Part, Reading, Size
from greenjax.data.tiff import ORIENTATION, TIFFS, WHITE_IS_ZERO, Decoded, by_tifffile, by_window, turned

FORMATS = ("AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")  # decoded by Pillow
# The mode to which a Pillow image is converted, by its own mode; transparency is dropped.
MODES = {"1": "L", "L": "L", "LA": "L"} | dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"), "RGB")
BITS, PHOTOMETRIC, PLANES, KIND = 258, 262, 284, 339  # tags of a TIFF
KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}  # values of KIND
SEPARATE = 2  # a value of PLANES
GREY_ALPHA = 4  # the type of colour in byte 25 of a PNG
# Names of the parts of PNG and WebP that may hold an orientation: EXIF data, as text too, and XMP data.
TURNING = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp", b"EXIF", b"XMP ")
# Flags by factor. In spite of their names they leave colours to the other flags.
REDUCED = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
REDUCED[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8

PIL.Image.MAX_IMAGE_PIXELS = 1 << 29  # pixels; Pillow refuses twice as many, as OpenCV does
# One line of ours names an image that cannot be decoded; the decoders print nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
for library in ("PIL", "tifffile"):
    logging.getLogger(library).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="PIL")


def decode(
    data: Buffer, header: JpegHeader | None, factor: int, rows: int | None, reading: Reading
) -> Num[np.ndarray, "h w c"]:
    """The pixels of a file, as `Encoded.decode` describes, with all channels and in the file's type.

    `header` is that of a JPEG. Raises ValueError with the reason, "" where none is known.
    """
    if data[:2] == b"\xff\xd8":
        return by_opencv_jpeg(data, header, factor, rows)
    read = next((read for start, read in READERS if start.match(data)), by_pillow)
    pixels, transparent = read(data, reading)
    return composed(pixels, reading.alpha) if transparent else pixels


def decode_part(data: Buffer, part: Part, reading: Reading) -> tuple[Num[np.ndarray, "h w c"], Size] | None:
    """The pixels of a part of a TIFF and its new size, as `decode`; None where only the whole can be decoded."""
    found = by_window(data, reading, part)
    if found is None:
        return None
    (pixels, transparent), size = found
    return composed(pixels, reading.alpha) if transparent else pixels, size


@contextmanager
def refusing() -> Iterator[None]:
    """Makes ValueErrors of a library's errors: a damaged file has Pillow, NumPy and zipfile raise many classes."""
    try:
        yield
    except PIL.UnidentifiedImageError as error:
        raise ValueError from error
    except Exception as error:
        raise ValueError(" ".join(str(error).split())) from error


# OpenCV


def by_opencv_jpeg(
    data: Buffer, header: JpegHeader | None, factor: int, rows: int | None
) -> UInt8[np.ndarray, "h w c"]:
    colour = header is not None and header.channels > 1
    flags = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_ANYCOLOR  # the latter keeps grey, but gives BGR
    shown = data
    if header is not None:
        flags |= REDUCED[factor]
        shown = data if rows is None else without_rows(data, header, rows)
    image = opened(shown, flags)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.shape[2] == 3 and not colour else image


def by_opencv(data: Buffer, reading: Reading) -> Decoded:
    """A PNG, WebP or PNM; as uint8 by the upper 8 of 16 bits."""
    deep = reading.dtype != "uint8"
    if reading.alpha == "drop":
        image = opened(data, cv2.IMREAD_ANYCOLOR | (cv2.IMREAD_ANYDEPTH if deep else 0))
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.shape[2] == 3 else image, False
    image = opened(data, cv2.IMREAD_UNCHANGED)  # not turned
    if image.dtype == np.uint16 and not deep:
        image = (image >> 8).astype(np.uint8)
    transparent = image.shape[2] == 4
    if image.shape[2] >= 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if transparent else cv2.COLOR_BGR2RGB)
    if transparent and data[:4] == b"\x89PNG" and data[25] == GREY_ALPHA:
        image = image[:, :, [0, 3]]
    orientation = 1
    if any(data.find(name) >= 0 for name in TURNING):  # Pillow would decode all of a PNG, to look behind the pixels
        with refusing(), PIL.Image.open(io.BytesIO(data)) as head:
            orientation = head.getexif().get(ORIENTATION, 1)
    return turned(image, orientation), transparent


def opened(data: Buffer | bytearray, flags: int) -> Num[np.ndarray, "h w c"]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # no bytes, or an impossible size
        image = None
    if image is None:
        raise ValueError
    return image[:, :, None] if image.ndim == 2 else image


# Pillow


def by_pillow(data: Buffer, reading: Reading) -> Decoded:
    with refusing(), PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return pixels_of(image, reading.alpha != "drop")


def pixels_of(image: PIL.Image.Image, alpha: bool) -> Decoded:
    """Grey or RGB pixels of a file that Pillow opened, with opacity if `alpha` and there is some.

    Raises ValueError for other pixels.
    """
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
    if alpha and image.has_transparency_data:
        return np.asarray(image if image.mode == "LA" else image.convert("RGBA")), True
    image.info.pop("transparency", None)
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        pixels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)[:, :, None]
        return ~pixels if inverted else pixels, False
    mode = MODES.get(image.mode)
    if mode is None:
        raise ValueError(f"its pixels are of mode {image.mode!r}: expected 8 or 16 bits of grey or RGB")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels, False


def by_opened(image: PIL.Image.Image, reading: Reading) -> Num[np.ndarray, "h w c"]:
    """The pixels of an image in Python, as `decode` gives those of its file; the image stays as it is."""
    if reading.dtype != "uint8":
        return np.atleast_3d(np.asarray(image))
    pixels, transparent = pixels_of(image.copy(), reading.alpha != "drop")
    return composed(pixels, reading.alpha) if transparent else pixels


# Others


def by_kind(picture: Callable[[Buffer, Reading], Decoded], other: Callable[[Buffer, Reading], Decoded]) -> Any:
    """A reader that reads pictures in one way and anything else in another."""
    return lambda data, reading: (picture if reading.of_picture else other)(data, reading)


def by_numpy(data: Buffer, reading: Reading) -> Decoded:
    """A .npy, or the only array of a .npz, or its array `image`: [h, w] or [h, w, c]."""
    with refusing():
        found = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(found, np.ndarray):
            name = found.files[0] if len(found.files) == 1 else "image"
            if name not in found.files:
                raise ValueError(f"its arrays are {', '.join(found.files) or 'none'}: expected one, or one named image")
            found = found[name]
    if found.ndim not in (2, 3) or not found.size or found.dtype.kind not in "uif":
        raise ValueError(f"it is an array of {found.dtype} {found.shape}: expected numbers [h, w] or [h, w, c]")
    found = found.astype(found.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(found[:, :, None] if found.ndim == 2 else found), False


def composed(pixels: Num[np.ndarray, "h w c"], alpha: str) -> Num[np.ndarray, "h w c2"]:
    """Pixels with their opacity as the last channel, as data.alpha wants them."""
    if alpha in ("keep", "drop"):
        return pixels if alpha == "keep" else pixels[:, :, :-1]
    whole = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1.0
    opacity = pixels[:, :, -1:].astype(np.float64) / whole
    mixed = pixels[:, :, :-1] * opacity + (0.0 if alpha == "black" else whole) * (1 - opacity)
    return (np.rint(mixed) if pixels.dtype.kind in "ui" else mixed).astype(pixels.dtype)


# How the files of a format begin, and their reader; all others are Pillow's.
READERS = tuple(
    (re.compile(start, re.DOTALL), read)
    for start, read in (
        (rb"\x89PNG\r\n\x1a\n", by_opencv),
        (rb"RIFF....WEBP", by_opencv),
        # OpenCV takes the upper 8 of 16 bits, as it does in a PNG; Pillow rounds them.
        (rb"P[2356]((\s|#[^\n]*\n)+\d+){2}(\s|#[^\n]*\n)+65535\s", by_opencv),
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", by_kind(by_pillow, by_opencv)),  # JPEG 2000
        (b"|".join(map(re.escape, TIFFS)), by_kind(by_pillow, by_tifffile)),
        (rb"\x93NUMPY|PK\x03\x04", by_numpy),  # .npy and .npz
    )
)
