"""TIFFs of any channels, depth and compression, read by tifffile and imagecodecs (the extra `tiff`)."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Num

from greenjax.data.reading import Box, Buffer, Part, Reading, Size
from greenjax.errors import installed

TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how they begin; the latter two are BigTIFF
MOST = 1 << 31  # values of a page
ORIENTATION, GDAL_NODATA = 274, 42113  # tags; the former of EXIF, too
UNASSOCIATED = 2  # value of the tag ExtraSamples: opacity that is not multiplied into the colours
TRANSPOSED = (5, 6, 7, 8)  # values of the tag of orientation that swap height and width
ALPHA = (1, UNASSOCIATED)
AXES = ("YX", "YXS", "SYX")  # of a page, in tifffile's letters; S are the channels
WHITE_IS_ZERO, PALETTE = 0, 3  # values of the tag PhotometricInterpretation
GREY_OR_RGB, YCBCR, JPEG = (1, 2), 6, 7  # others, and a value of the tag Compression
REFUSED = {5: "CMYK", 8: "CIELAB"}  # others


Decoded = tuple[Num[np.ndarray, "h w c"], bool]  # pixels; whether the last channel is their opacity


def by_tifffile(data: Buffer, reading: Reading) -> Decoded:
    """The pixels of the page, or of all pages, that `reading` asks for. Raises ValueError with the reason."""
    with opened(data) as file:
        if reading.page >= 0:
            return pixels_of(page_of(file, reading))
        return np.concatenate([pixels_of(page)[0] for page in pages_of(file)], axis=2), False


def by_window(data: Buffer, reading: Reading, part: Part) -> tuple[Decoded, Size] | None:
    """The pixels of a part of a page and its new size, read without the rest of the page.

    None where the page can only be read whole. Raises ValueError with the reason, InputError for a missing package.
    """
    with opened(data) as file:
        page = page_of(file, reading) if reading.page >= 0 else None
        if page is None or not by_segments(page, reading.of_picture):
            return None
        box, new_size = part((page.imagelength, page.imagewidth))
        return pixels_of(page, box), new_size


@contextmanager
def opened(data: Buffer) -> Iterator[Any]:
    """A file of tifffile, whose errors become ValueErrors."""
    tifffile: Any = installed("tifffile", "greenjax[tiff]", "tifffile reads it")
    try:
        with tifffile.TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
            yield file
    except Exception as error:  # a damaged file has tifffile raise errors of many classes
        if "imagecodecs" in str(error):  # which this compression needs
            installed("imagecodecs", "greenjax[tiff]", "imagecodecs reads it")
        raise ValueError(" ".join(str(error).split())) from error


def by_segments(page: Any, picture: bool) -> bool:
    """Whether a page can be put together from its tiles or strips alone; a picture as Pillow reads it."""
    plain = page.photometric in GREY_OR_RGB or (page.photometric == YCBCR and page.compression == JPEG)
    if picture:
        colours = page.samplesperpixel - (page.extrasamples == (UNASSOCIATED,))
        plain = plain and page.dtype == np.uint8 and page.bitspersample == 8 and colours in (1, 3)
    return plain and page.axes in AXES and orientation_of(page) == 1


def page_of(file: Any, reading: Reading) -> Any:
    pages = pages_of(file)
    if reading.page >= len(pages):
        raise ValueError(f"it has {len(pages)} pages: expected more than {reading.page} (data.page)")
    return pages[reading.page]


def pages_of(file: Any) -> list[Any]:
    """The pages in full size."""
    return [page for page in map(file.pages.get, range(len(file.pages))) if not page.is_reduced]


def pixels_of(page: Any, box: Box | None = None) -> Decoded:
    """The pixels of a page, or of a box of it, upright and in its own type."""
    if page.axes not in AXES:
        raise ValueError(f"it has pixels of shape {page.shape} (axes {page.axes}): expected one picture a page")
    if page.photometric in REFUSED:
        raise ValueError(f"its colours are {REFUSED[page.photometric]}: expected grey, RGB or other channels")
    if (page.size if box is None else box[2] * box[3] * page.samplesperpixel) > MOST:
        raise ValueError(f"it has {page.imagelength} x {page.imagewidth} pixels: expected fewer, or smaller crops")
    page.nodata = no_data_of(page)  # tifffile's own is 0 for the lowest float32 as GDAL writes it
    if box is None:
        pixels = page.asarray(maxworkers=1)
        pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels.reshape(*pixels.shape[:2], -1)
    else:
        pixels = window(page, box)
    if page.photometric == WHITE_IS_ZERO and pixels.dtype.kind in "ub":
        pixels = ~pixels if pixels.dtype == bool else (1 << page.bitspersample) - 1 - pixels
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if page.photometric == PALETTE:
        pixels = (page.colormap.T[pixels[:, :, 0]] >> 8).astype(np.uint8)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    transparent = pixels.shape[2] > 1 and len(page.extrasamples) > 0 and page.extrasamples[-1] in ALPHA
    return turned(pixels, orientation_of(page)), transparent


def window(page: Any, box: Box) -> Num[np.ndarray, "h w c"]:
    """The pixels of a box of a page, from the tiles or strips that it touches."""
    top, left, height, width = box
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    down, across = -(-page.imagelength // rows), -(-page.imagewidth // columns)
    planes = page.samplesperpixel if page.axes == "SYX" else 1
    found = np.full((height, width, page.samplesperpixel), page.nodata, page.dtype)
    for row, column, plane in product(
        range(top // rows, -(-(top + height) // rows)),
        range(left // columns, -(-(left + width) // columns)),
        range(planes),
    ):
        index = (plane * down + row) * across + column
        if not (page.dataoffsets[index] and page.databytecounts[index]):
            continue  # of a sparse file: not stored
        page.parent.filehandle.seek(page.dataoffsets[index])
        stored = page.parent.filehandle.read(page.databytecounts[index])
        segment = page.decode(stored, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        if segment is not None:
            y, x = top - row * rows, left - column * columns  # of the box in the segment
            taken = segment[0, max(0, y) : y + height, max(0, x) : x + width]
            place = found[max(0, -y) :, max(0, -x) :][: len(taken), : taken.shape[1]]
            place[..., plane : plane + taken.shape[2]] = taken[: len(place), : place.shape[1]]
    return found


def no_data_of(page: Any) -> Any:
    """The value of pixels that a sparse file does not store: its GDAL_NODATA, or 0 without one that its type has."""
    try:
        value = np.float64(page.tags.valueof(GDAL_NODATA).replace(",", "."))
    except (AttributeError, ValueError):  # no such tag, or no number
        return 0
    with np.errstate(over="ignore", invalid="ignore"):
        stored = value.astype(page.dtype)
    there = np.isinf(stored) == np.isinf(value) if stored.dtype.kind == "f" else stored == value
    return stored if there else 0


def orientation_of(page: Any) -> int:
    return page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1


def turned(pixels: Num[np.ndarray, "h w c"], orientation: int) -> Num[np.ndarray, "h2 w2 c"]:
    """The pixels upright, by EXIF's definition of orientations; others than 2 to 8 change nothing."""
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
