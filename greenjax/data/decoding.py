"""The pixels of image files.

OpenCV decodes JPEG, PNG and WebP, faster than Pillow. Pillow decodes the formats of which OpenCV reads some files
wrongly: OpenCV multiplies a TIFF by its alpha, wraps signed pixels round, reads any PNM as one of 255 levels and a
24-bit OS/2 bitmap as grey, shows transparent pixels of a GIF in another colour and ignores the rotation of an AVIF.
"""

import io
import logging
import re
import warnings
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from greenjax.data.jpeg import JpegHeader, without_rows

FORMATS = ("AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")  # decoded by Pillow
# The mode to which a Pillow image is converted, by its own mode; transparency is dropped.
MODES = {"1": "L", "L": "L", "LA": "L"} | dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"), "RGB")
# Left to OpenCV, which takes the upper 8 of 16 bits, as it does in a PNG; Pillow rounds them.
DEEP_PNM = re.compile(rb"P[2356]((\s|#.*\n)+\d+){2}(\s|#.*\n)+65535\s")
BITS, PHOTOMETRIC, PLANES, KIND = 258, 262, 284, 339  # tags of a TIFF
KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}  # values of KIND
WHITE_IS_ZERO, SEPARATE = 0, 2  # values of PHOTOMETRIC and PLANES
# Flags by factor. In spite of their names they leave colours to the other flags.
REDUCED = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
REDUCED[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8

PIL.Image.MAX_IMAGE_PIXELS = 1 << 29  # pixels; Pillow refuses twice as many, as OpenCV does
# One line of ours names an image that cannot be decoded; the decoders print nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="PIL")


def decode(data: bytes, header: JpegHeader | None, factor: int, rows: int | None) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a file, as `Encoded.decode` describes. Raises ValueError with the reason, "" where none is known.

    `header` is that of a JPEG.
    """
    return by_opencv(data, header, factor, rows) if for_opencv(data) else by_pillow(data)


def for_opencv(data: bytes) -> bool:
    """Whether OpenCV reads all files of this format rightly."""
    start = data[:12]
    if start[:2] == b"\xff\xd8" or start[:8] == b"\x89PNG\r\n\x1a\n":
        return True
    return (start[:4], start[8:]) == (b"RIFF", b"WEBP") or DEEP_PNM.match(data) is not None


def by_opencv(data: bytes, header: JpegHeader | None, factor: int, rows: int | None) -> UInt8[np.ndarray, "h w c"]:
    colour = header is not None and header.channels > 1
    flags = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_ANYCOLOR  # the latter keeps grey, but gives BGR
    shown = data
    if header is not None:
        flags |= REDUCED[factor]
        shown = data if rows is None else without_rows(data, header, rows)
    try:
        image = cv2.imdecode(np.frombuffer(shown, np.uint8), flags)
    except cv2.error:  # no bytes, or an impossible size
        image = None
    if image is None:
        raise ValueError
    if image.ndim == 2:
        return image[:, :, None]
    return image if colour else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def by_pillow(data: bytes) -> UInt8[np.ndarray, "h w c"]:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return pixels_of(image)
    except PIL.UnidentifiedImageError as error:
        raise ValueError from error
    except Exception as error:  # a damaged file has Pillow raise errors of many classes
        raise ValueError(" ".join(str(error).split())) from error


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
