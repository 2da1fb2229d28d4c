"""Headers of JPEG files: their sizes, read in microseconds, and a smaller height that ends decoding early."""

from mmap import mmap
from typing import NamedTuple

# Markers of segments. FRAMES: headers of frames that a decoder can shrink, which lossless ones are not.
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
BASELINE, SCAN, RESTART, EXIF = 0xC0, 0xDA, 0xDD, 0xE1
BLOCK = 16  # rows in which most JPEGs are decoded; leaving out fewer saves nothing


class JpegHeader(NamedTuple):
    """Size and channels in the header of a JPEG, before the rotation that its EXIF data ask for."""

    height: int
    width: int
    channels: int
    height_at: int  # byte offset of the height, if decoding may end above the last row; else 0


def jpeg_header(data: bytes | mmap) -> JpegHeader | None:
    """Size and channels of a JPEG; None for anything else."""
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


def without_rows(data: bytes | mmap, header: JpegHeader, rows: int) -> bytes | mmap | bytearray:
    """The JPEG with a smaller height in its header, at which the decoder stops: at least `rows`, as they were.

    The end marker is cut off too, which the decoder would search for, with a warning of the bytes that it skips.
    """
    height = rows + 2  # the colours of the next row smooth those of the last
    if not header.height_at or (height - 1) // BLOCK >= (header.height - 1) // BLOCK:
        return data
    shorter = bytearray(data)
    del shorter[-2:]
    shorter[header.height_at : header.height_at + 2] = height.to_bytes(2, "big")
    return shorter
