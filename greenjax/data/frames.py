"""Whether a file has more than one frame or page, from its headers alone: nothing is decoded."""

import struct
from mmap import mmap

from greenjax.data.tiff import TIFFS

FULL = 0  # the lowest bits of a TIFF's tag 254 for a page in full size, no preview and no mask
KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of a TIFF's numbers


def has_more(data: bytes | mmap) -> bool:
    """Whether a GIF, WebP, PNG, AVIF or TIFF has more than one frame, or page in full size. False where damaged."""
    try:
        if data[:4] == b"GIF8":
            return gif_frames(data)
        if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
            return bool(data[20] & 2)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return png_frames(data)
        if data[:4] in TIFFS:
            return tiff_pages(data)
        return data[4:12] == b"ftypavis"
    except (IndexError, KeyError, OverflowError, struct.error):
        return False


def gif_frames(data: bytes | mmap) -> bool:
    at, images = 13 + colours(data[10]), 0
    while data[at] != 0x3B:  # the end
        images += data[at] == 0x2C
        if images > 1:
            return True
        at += 2 if data[at] == 0x21 else 11 + colours(data[at + 9])  # an extension, or an image
        while data[at]:  # blocks with their lengths
            at += data[at] + 1
        at += 1
    return False


def colours(flags: int) -> int:
    """Bytes of a GIF's table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def png_frames(data: bytes | mmap) -> bool:
    """An animated PNG says how many frames it has before its first pixels."""
    at = 8
    while (kind := data[at + 4 : at + 8]) not in (b"IDAT", b""):
        if kind == b"acTL":
            return struct.unpack_from(">I", data, at + 8)[0] > 1
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return False


def tiff_pages(data: bytes | mmap) -> bool:
    order, big = ("<" if data[:1] == b"I" else ">"), 43 in data[2:4]
    count, offset, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    (at,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    pages, seen = 0, set()
    while at and at not in seen:
        seen.add(at)
        (entries,) = struct.unpack_from(order + count, data, at)
        first = at + struct.calcsize(count)
        pages += page_kind(data, order, big, range(first, first + entries * entry, entry)) == FULL
        if pages > 1:
            return True
        (at,) = struct.unpack_from(order + offset, data, first + entries * entry)
    return False


def page_kind(data: bytes | mmap, order: str, big: bool, entries: range) -> int:
    """The lowest and the third bit of a page's tag 254, NewSubfileType: a smaller copy, and a mask."""
    for at in entries:
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag == 254:
            return struct.unpack_from(order + KINDS[kind], data, at + (12 if big else 8))[0] & 5
        if tag > 254:  # they are sorted
            break
    return FULL
