"""Odd files that a folder of images may hold: their kind, their bytes, and what is to come of each.

    python -m tests.odd_files      prints the table of docs/faults.md

Most are written here, from definitions of the formats, so that their pixels are known whatever a decoder says. Pillow
and OpenCV write the formats that are too long to write here; of lossy ones the pixels are those that Pillow reads.
"""

import io
import os
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

REFUSED = "cannot be decoded as an image"
LEFT_OUT = None  # not listed as an image, whatever is in it
ORIENTATION = 0x0112  # EXIF


class Odd(NamedTuple):
    kind: str
    name: str
    data: bytes | Callable[[str], None]  # the file, or what makes one at a path
    expected: Any  # pixels; or, in an error's line, text; or LEFT_OUT
    near: int = 0  # by how much pixels may differ


@cache
def odd_files() -> list[Odd]:
    """All of them, always the same ones, with names that differ."""
    found: list[Odd] = []
    for make in (jpegs, pngs, webps, tiffs, bitmaps, netpbm, others, wrong_content, special):
        found += make()
    return [odd._replace(name=f"{i:03}_{odd.name}") for i, odd in enumerate(found)]


# Pictures

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 12, 17
COLOUR = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY, ALPHA = COLOUR[..., 0], RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
DEEP = RNG.integers(0, 1 << 16, (HEIGHT, WIDTH, 4)).astype(np.uint16)
SMOOTH = cv2.resize(COLOUR[:3, :4], (96, 80), interpolation=cv2.INTER_CUBIC)  # for lossy formats
PALETTE = RNG.integers(0, 256, (256, 3), np.uint8)


def levels(bits: int) -> Any:
    return RNG.integers(0, 1 << bits, (HEIGHT, WIDTH)).astype(np.uint8 if bits <= 8 else np.uint16)


def packed(values: Any, bits: int) -> bytes:
    """Rows of values of less than 8 bits, each row filled up to whole bytes."""
    each = np.unpackbits(values[..., None], axis=2)[..., -bits:]
    return np.packbits(each.reshape(len(values), -1), axis=1).tobytes()


def by_pillow(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def read(data: bytes) -> Any:
    """The pixels as Pillow reads them, not turned."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))


def turned(pixels: Any, orientation: int) -> Any:
    """What EXIF's definition of its orientations makes of an image."""
    ways = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    across = pixels.swapaxes(0, 1)
    ways |= {5: across, 6: across[:, ::-1], 7: across[::-1, ::-1], 8: across[::-1]}
    return ways.get(orientation, pixels)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def cuts(kind: str, data: bytes, suffix: str, shares: tuple[float, ...] = (0.1, 0.5, 0.9)) -> Iterator[Odd]:
    for share in shares:
        yield Odd(f"{kind}, cut", f"cut{share}{suffix}", data[: int(len(data) * share)], REFUSED)


# JPEG


def jpegs() -> Iterator[Odd]:
    plain = by_pillow(SMOOTH, "JPEG", quality=90)
    for sampling in range(3):
        data = by_pillow(SMOOTH, "JPEG", quality=95, subsampling=sampling)
        yield Odd("JPEG", f"sampling{sampling}.jpg", data, read(data))
    data = by_pillow(SMOOTH[..., 0], "JPEG")
    yield Odd("JPEG, grey", "grey.jpg", data, read(data))
    for name, options in {"progressive": {"progressive": True}, "restarts": {"restart_marker_rows": 1}}.items():
        data = by_pillow(SMOOTH, "JPEG", **options)
        yield Odd(f"JPEG, {name}", f"{name}.jpg", data, read(data))
    data = by_pillow(SMOOTH, "JPEG", keep_rgb=True)
    yield Odd("JPEG, RGB", "rgb.jpg", data, read(data))
    cmyk = by_pillow(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=98)
    adobe = cmyk.index(b"Adobe")
    ycck = cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :]
    for name, data in {"cmyk": cmyk, "no_adobe": cmyk[: adobe - 4] + cmyk[adobe + 12 :], "ycck": ycck}.items():
        yield Odd("JPEG, CMYK or YCCK", f"{name}.jpg", data, read(data), near=2)
    for orientation in range(10):
        data = by_pillow(SMOOTH, "JPEG", exif=exif(orientation))
        yield Odd("JPEG, turned by EXIF", f"exif{orientation}.jpg", data, turned(read(data), orientation))
    data = by_pillow(SMOOTH, "JPEG", quality=90, icc_profile=bytes(500), comment=b"a comment")
    yield Odd("JPEG, ICC profile", "profile.jpg", data, read(plain))
    yield Odd("JPEG, more after its end", "more.jpg", plain + b"more" * 99, read(plain))
    data = by_pillow(SMOOTH, "MPO", save_all=True, append_images=[Image.fromarray(255 - SMOOTH)])
    yield Odd("JPEG, several images", "several.jpg", data, read(data))
    for height, width in ((1, 1), (1, 900), (900, 1), (8, 8), (480, 640)):
        data = by_pillow(cv2.resize(SMOOTH, (width, height)), "JPEG")
        yield Odd("JPEG, thin, tiny or large", f"{height}x{width}.jpg", data, read(data))
    for suffix in (".jfif", ".jpe", ".JPG", ".png", ".webp", ".tif"):
        yield Odd("JPEG, another suffix", f"jpeg{suffix}", plain, read(plain))
    frame = plain.index(b"\xff\xc0")
    changes = {"no rows": (5, b"\0\0"), "no columns": (7, b"\0\0"), "12 bits": (4, b"\x0c"), "lossless": (1, b"\xc3")}
    changes |= {"two channels": (9, b"\2"), "a million pixels high": (5, b"\xff\xff"), "arithmetic": (1, b"\xc8")}
    for name, (at, value) in changes.items():
        data = plain[: frame + at] + value + plain[frame + at + len(value) :]
        yield Odd("JPEG, a header that cannot be", f"{name.replace(' ', '_')}.jpg", data, REFUSED)
    yield from cuts("JPEG", plain, ".jpg", (0.01, 0.1, 0.3, 0.5, 0.7, 0.9))
    yield Odd("JPEG, cut", "no_end.jpg", plain[:-2], REFUSED)


# PNG

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: Any, kind: int, bits: int = 8, *chunks: bytes, interlaced: bool = False) -> bytes:
    """PNG of `kind`: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha."""

    def rows(part: Any) -> bytes:
        lines = [packed(line[None], bits) if bits < 8 else line.astype(f">u{bits // 8}").tobytes() for line in part]
        return b"".join(b"\0" + line for line in lines)

    data = b"".join(rows(values[y::dy, x::dx]) for y, x, dy, dx in ADAM7) if interlaced else rows(values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pngs() -> Iterator[Odd]:
    colours, both = np.dstack([COLOUR, ALPHA]), np.dstack([GREY, ALPHA])
    for bits in (1, 2, 4, 8):
        values = levels(bits)
        data, expected = png(values, 0, bits), values * (255 // ((1 << bits) - 1))
        yield Odd("PNG, grey of 1 to 8 bits", f"grey{bits}.png", data, expected)
        palette = chunk(b"PLTE", PALETTE[: 1 << bits].tobytes())
        yield Odd("PNG, palette", f"p{bits}.png", png(values, 3, bits, palette), PALETTE[values])
        see_through = chunk(b"tRNS", bytes([0, 99]))
        data = png(values, 3, bits, palette, see_through)
        yield Odd("PNG, transparent colour", f"trns_p{bits}.png", data, PALETTE[values])
        data = png(values, 0, bits, chunk(b"tRNS", struct.pack(">H", 1)))
        yield Odd("PNG, transparent colour", f"trns_grey{bits}.png", data, expected)
    first = chunk(b"tRNS", struct.pack(">HHH", *COLOUR[0, 0]))
    yield Odd("PNG, transparent colour", "trns_rgb.png", png(COLOUR, 2, 8, first), COLOUR)
    yield Odd("PNG, alpha", "rgba.png", png(colours, 6), COLOUR)
    yield Odd("PNG, alpha", "la.png", png(both, 4), GREY)
    yield Odd("PNG, 16 bits", "grey16.png", png(DEEP[..., 0], 0, 16), DEEP[..., 0] >> 8)
    yield Odd("PNG, 16 bits", "rgb16.png", png(DEEP[..., :3], 2, 16), DEEP[..., :3] >> 8)
    yield Odd("PNG, 16 bits", "la16.png", png(DEEP[..., :2], 4, 16), DEEP[..., 0] >> 8)
    yield Odd("PNG, 16 bits", "rgba16.png", png(DEEP, 6, 16), DEEP[..., :3] >> 8)
    for name, kind, values, expected in (
        ("rgb", 2, COLOUR, COLOUR),
        ("grey", 0, GREY, GREY),
        ("a", 6, colours, COLOUR),
    ):
        yield Odd("PNG, interlaced", f"interlaced_{name}.png", png(values, kind, interlaced=True), expected)
    for name, value in {"gAMA": struct.pack(">I", 100000), "sBIT": bytes([5, 5, 5]), "tEXt": b"a\0b"}.items():
        yield Odd("PNG, other chunks", f"{name}.png", png(COLOUR, 2, 8, chunk(name.encode(), value)), COLOUR)
    yield Odd("PNG, other chunks", "bKGD.png", png(colours, 6, 8, chunk(b"bKGD", b"\0\xff\0\0\0\0")), COLOUR)
    for orientation in (1, 3, 6, 8):
        data = by_pillow(COLOUR, "PNG", exif=exif(orientation))
        yield Odd("PNG, turned by EXIF", f"exif{orientation}.png", data, turned(COLOUR, orientation))
    data = by_pillow(COLOUR, "PNG", save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    yield Odd("PNG, animated", "animated.png", data, COLOUR)
    for height, width in ((1, 1), (1, 3000), (3000, 1)):
        thin = np.resize(COLOUR, (height, width, 3))
        yield Odd("PNG, thin or tiny", f"{height}x{width}.png", png(thin, 2), thin)
    whole = png(COLOUR, 2)
    yield from cuts("PNG", whole, ".png", (0.05, 0.3, 0.6, 0.9, 0.98))
    for at in (60, len(whole) // 2, len(whole) - 20):
        yield Odd("PNG, a flipped bit", f"flip{at}.png", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], REFUSED)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0))
    yield Odd("a header of a billion pixels", "bomb.png", whole[:8] + header + whole[33:], REFUSED)


# WebP


def webps() -> Iterator[Odd]:
    data = by_pillow(SMOOTH, "WEBP", quality=80)
    yield Odd("WebP", "lossy.webp", data, read(data))
    yield Odd("WebP", "lossless.webp", by_pillow(COLOUR, "WEBP", lossless=True), COLOUR)
    see_through = by_pillow(np.dstack([COLOUR, ALPHA]), "WEBP", lossless=True, exact=True)
    yield Odd("WebP, alpha", "alpha.webp", see_through, COLOUR)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - COLOUR)]}
    yield Odd("WebP, animated", "animated.webp", by_pillow(COLOUR, "WEBP", lossless=True, **frames), COLOUR)
    for orientation in (1, 2, 5, 7):
        data = by_pillow(COLOUR, "WEBP", lossless=True, exif=exif(orientation))
        yield Odd("WebP, turned by EXIF", f"exif{orientation}.webp", data, turned(COLOUR, orientation))
    yield from cuts("WebP", by_pillow(COLOUR, "WEBP", lossless=True), ".webp")


# TIFF


def tiff(
    values: Any,
    photometric: int,
    *,
    bits: int = 0,
    kind: int = 1,
    data: bytes | None = None,
    order: str = "<",
    **more: Any,
) -> bytes:
    """An uncompressed TIFF. `more`: alpha (values of ExtraSamples), planes, palette, orientation, pages, big."""
    height, width = values.shape[:2]
    samples = 1 if values.ndim == 2 else values.shape[2]
    stored = values.astype(values.dtype.newbyteorder(order))
    planes = np.moveaxis(stored, 2, 0) if more.get("planes") else stored[None]
    strips = [data] if data else [np.ascontiguousarray(plane).tobytes() for plane in planes]
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits or 8 * values.itemsize] * samples), 259: (3, [1])}
    tags |= {262: (3, [photometric]), 277: (3, [samples]), 278: (4, [height]), 284: (3, [1 + bool(more.get("planes"))])}
    tags |= {339: (3, [kind] * samples)} if kind != 1 else {}
    tags |= {338: (3, more["alpha"])} if "alpha" in more else {}
    tags |= {320: (3, more["palette"])} if "palette" in more else {}
    tags |= {274: (3, [more["orientation"]])} if "orientation" in more else {}
    big = more.get("big", False)
    start, place, count = (16, "Q", "Q") if big else (8, "I", "H")
    offsets = [start + sum(map(len, strips[:i])) for i in range(len(strips))]
    tags |= {273: (4, offsets), 279: (4, [len(strip) for strip in strips])}
    body = b"".join(strips)
    at = start + len(body)
    room = struct.calcsize(order + place)
    end = at + struct.calcsize(order + count) + len(tags) * (4 + 2 * room) + room
    entries, tail = b"", b""
    for tag, (type_, numbers) in sorted(tags.items()):
        raw = struct.pack(order + {3: "H", 4: "I"}[type_] * len(numbers), *numbers)
        if len(raw) > room:
            raw, tail = struct.pack(order + place, end + len(tail)), tail + raw
        entries += struct.pack(order + "HH" + place, tag, type_, len(numbers)) + raw.ljust(room, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at)
    return mark + head + body + struct.pack(order + count, len(tags)) + entries + bytes(room) + tail


def tiffs() -> Iterator[Odd]:
    colours, both, grey16 = np.dstack([COLOUR, ALPHA]), np.dstack([GREY, ALPHA]), DEEP[..., 0]
    plain = tiff(COLOUR, 2)
    yield Odd("TIFF", "rgb.tif", plain, COLOUR)
    yield Odd("TIFF", "grey.tiff", tiff(GREY, 1), GREY)
    yield Odd("TIFF", "big_endian.tif", tiff(COLOUR, 2, order=">"), COLOUR)
    yield Odd("TIFF", "planes.tif", tiff(COLOUR, 2, planes=True), COLOUR)
    yield Odd("TIFF", "big.tif", tiff(COLOUR, 2, big=True), COLOUR)
    yield Odd("TIFF, white is 0", "white.tif", tiff(GREY, 0), 255 - GREY)
    yield Odd("TIFF, white is 0", "white16.tif", tiff(grey16, 0), (65535 - grey16) >> 8)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate"):
        data = by_pillow(COLOUR, "TIFF", compression=compression)
        yield Odd("TIFF, compressed", f"{compression}.tif", data, COLOUR)
    data = by_pillow(SMOOTH, "TIFF", compression="jpeg")
    yield Odd("TIFF, compressed", "jpeg.tif", data, read(data))
    one = levels(1)
    yield Odd("TIFF, 1 bit", "one.tif", tiff(one, 1, bits=1, data=packed(one, 1)), one * 255)
    yield Odd(
        "TIFF, 1 bit",
        "fax.tif",
        by_pillow(Image.fromarray(one * 255).convert("1"), "TIFF", compression="group4"),
        one * 255,
    )
    for bits in (2, 4):
        values = levels(bits)
        data = tiff(values, 1, bits=bits, data=packed(values, bits))
        yield Odd("TIFF, few bits", f"grey{bits}.tif", data, values * (255 // ((1 << bits) - 1)))
    for bits in (1, 4, 8):
        values, palette = levels(bits), PALETTE[: 1 << bits]
        data = tiff(
            values, 3, bits=bits, data=packed(values, bits), palette=(palette.T.astype(int) * 257).ravel().tolist()
        )
        yield Odd("TIFF, palette", f"palette{bits}.tif", data, palette[values])
    yield Odd("TIFF, alpha", "rgba.tif", tiff(colours, 2, alpha=[2]), COLOUR)
    yield Odd("TIFF, alpha", "rgba_planes.tif", tiff(colours, 2, alpha=[2], planes=True), COLOUR)
    yield Odd("TIFF, alpha", "rgbx.tif", tiff(colours, 2, alpha=[0]), COLOUR)
    yield Odd("TIFF, alpha", "la.tif", tiff(both, 1, alpha=[2]), GREY)
    opaque = np.dstack([COLOUR, np.full_like(GREY, 255)])
    yield Odd("TIFF, alpha", "multiplied.tif", tiff(opaque, 2, alpha=[1]), COLOUR)
    yield Odd("TIFF, 16 bits", "grey16.tif", tiff(grey16, 1), grey16 >> 8)
    yield Odd("TIFF, 16 bits", "grey16_big_endian.tif", tiff(grey16, 1, order=">"), grey16 >> 8)
    yield Odd("TIFF, 16 bits", "rgb16.tif", tiff(DEEP[..., :3], 2), DEEP[..., :3] >> 8)
    yield Odd("TIFF, 16 bits", "rgba16.tif", tiff(DEEP, 2, alpha=[2]), DEEP[..., :3] >> 8)
    data = by_pillow(Image.fromarray(SMOOTH).convert("CMYK"), "TIFF")
    yield Odd("TIFF, CMYK", "cmyk.tif", data, read(data))
    data = by_pillow(COLOUR, "TIFF", save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    yield Odd("TIFF, several pages", "pages.tif", data, COLOUR)
    for orientation in (1, 3, 6, 7):
        data = tiff(COLOUR, 2, orientation=orientation)
        yield Odd("TIFF, turned", f"turned{orientation}.tif", data, turned(COLOUR, orientation))
    yield from refused_tiffs(plain)


def refused_tiffs(plain: bytes) -> Iterator[Odd]:
    """Files whose pixels greenjax refuses, and damaged copies of `plain`."""
    grey16 = DEEP[..., 0]
    for name, values in {
        "int8": GREY.view(np.int8),
        "int16": grey16.view(np.int16),
        "int32": grey16.astype(np.int32),
    }.items():
        yield Odd("TIFF, signed", f"{name}.tif", tiff(values, 1, kind=2), f"{REFUSED}: its pixels are signed of ")
    yield Odd("TIFF, signed", "int16_rgb.tif", tiff(DEEP[..., :3].view(np.int16), 2, kind=2), REFUSED)
    for kind in (np.float16, np.float32, np.float64):
        yield Odd("TIFF, floating-point", f"{np.dtype(kind).name}.tif", tiff(GREY.astype(kind), 1, kind=3), REFUSED)
    yield Odd("TIFF, floating-point", "float_rgb.tif", tiff(COLOUR.astype(np.float32), 2, kind=3), REFUSED)
    yield Odd("TIFF, 32 bits", "uint32.tif", tiff(grey16.astype(np.uint32) << 16, 1), "unsigned of 32 bits: expected ")
    yield Odd("TIFF, 32 bits", "uint32_rgb.tif", tiff(DEEP[..., :3].astype(np.uint32) << 16, 2), REFUSED)
    yield Odd("TIFF, 16 bits in planes", "rgb16_planes.tif", tiff(DEEP[..., :3], 2, planes=True), "in separate planes")
    yield Odd("TIFF, other colours", "lab.tif", tiff(COLOUR, 8), "its pixels are of mode 'LAB'")
    yield Odd("TIFF, other colours", "raw.tif", tiff(GREY, 32803), REFUSED)
    yield Odd("TIFF, other colours", "seven.tif", tiff(np.dstack([COLOUR, COLOUR, ALPHA]), 1, alpha=[0] * 6), REFUSED)
    yield from cuts("TIFF", plain, ".tif", (0.01, 0.5, 0.9))
    yield Odd(
        "a header of a billion pixels",
        "bomb.tif",
        plain.replace(struct.pack("<HHII", 257, 4, 1, HEIGHT), struct.pack("<HHII", 257, 4, 1, 1 << 30)),
        REFUSED,
    )


# BMP


def bmp(
    bits: int, rows: bytes, compression: int = 0, more: bytes = b"", header: int = 40, height: int = HEIGHT
) -> bytes:
    """A bitmap whose rows are given as they are stored, from the last to the first; `more` is what lies before them."""
    info = struct.pack("<IiiHHIIiiII", header, WIDTH, height, 1, bits, compression, len(rows), 0, 0, 0, 0)
    start = 14 + len(info) + len(more)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + more + rows


def padded(rows: Any) -> bytes:
    """Rows that are filled up to a multiple of four bytes, from the last to the first."""
    lines = (np.ascontiguousarray(row).tobytes() for row in rows[::-1])
    return b"".join(line + bytes(-len(line) % 4) for line in lines)


def bitmaps() -> Iterator[Odd]:
    blue_first, palette = np.dstack([COLOUR[..., ::-1], ALPHA]), np.insert(PALETTE[:, ::-1], 3, 0, axis=1)
    plain = bmp(24, padded(COLOUR[..., ::-1]))
    yield Odd("BMP", "24.bmp", plain, COLOUR)
    yield Odd("BMP", "24.dib", plain, COLOUR)
    yield Odd("BMP", "top_down.bmp", bmp(24, padded(COLOUR[::-1, :, ::-1]), height=-HEIGHT), COLOUR)
    yield Odd("BMP, 32 bits", "32.bmp", bmp(32, padded(blue_first)), COLOUR)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    yield Odd("BMP, 32 bits", "alpha.bmp", bmp(32, padded(blue_first), 3, masks + bytes(52), 108), COLOUR)
    turned_masks = struct.pack("<III", 0xFF000000, 0xFF0000, 0xFF00)
    yield Odd(
        "BMP, 32 bits", "masks.bmp", bmp(32, padded(np.dstack([ALPHA, COLOUR[..., ::-1]])), 3, turned_masks), COLOUR
    )
    values = levels(8)
    yield Odd("BMP, palette", "8.bmp", bmp(8, padded(values), more=palette.tobytes()), PALETTE[values])
    runs = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in values[::-1]) + b"\0\1"
    yield Odd("BMP, palette", "rle.bmp", bmp(8, runs, 1, palette.tobytes()), PALETTE[values])
    five = RNG.integers(0, 32, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    rows = padded((five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype("<u2"))
    yield Odd("BMP, 16 bits", "16.bmp", bmp(16, rows), five * 255 // 31, near=1)
    header = struct.pack("<IHHI", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    yield Odd("BMP, OS/2", "os2.bmp", b"BM" + header + padded(COLOUR[..., ::-1]), COLOUR)
    yield from cuts("BMP", plain, ".bmp")


# PBM, PGM, PPM


def netpbm() -> Iterator[Odd]:
    def text(values: Any) -> bytes:
        return b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in values)

    for most in (1, 15, 100, 255, 1023, 4095, 65535):
        for kind, channels in ((b"P5", 1), (b"P6", 3)):
            values = RNG.integers(0, most + 1, (HEIGHT, WIDTH, channels))
            expected = values >> 8 if most == 65535 else np.round(values * (255 / most)).astype(int)
            name = "PGM and PPM" + {255: "", 65535: ", 16 bits"}.get(most, ", other levels")
            header = b"%s\n# made here\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, most)
            data = header + values.astype("u1" if most < 256 else ">u2").tobytes()
            suffix = ".pgm" if channels == 1 else ".ppm"
            yield Odd(name, f"{most}{suffix}", data, expected, near=255 % most > 0)
            if most in (100, 65535):
                data = header.replace(b"P5", b"P2").replace(b"P6", b"P3") + text(values) + b"\n"
                yield Odd("PGM and PPM, as text", f"text{most}{suffix}", data, expected, near=255 % most > 0)
    one = levels(1)
    size = b"%d %d\n" % (WIDTH, HEIGHT)
    yield Odd("PBM", "one.pbm", b"P4\n" + size + packed(one, 1), (1 - one) * 255)
    yield Odd("PBM", "text.pbm", b"P1\n" + size + text(one) + b"\n", (1 - one) * 255)
    yield from cuts("PPM", b"P6\n" + size + b"255\n" + COLOUR.tobytes(), ".ppm")
    yield Odd(
        "PFM", "float.ppm", b"Pf\n" + size + b"-1.0\n" + GREY.astype("<f4").tobytes(), "its pixels are of mode 'F'"
    )


# GIF, AVIF, JPEG 2000


def others() -> Iterator[Odd]:
    indexed = Image.fromarray(levels(4))
    indexed.putpalette(PALETTE[:16].tobytes())
    pixels, frames = PALETTE[np.asarray(indexed)], {"save_all": True, "append_images": [indexed.rotate(180)]}
    yield Odd("GIF", "plain.gif", by_pillow(indexed, "GIF"), pixels)
    yield Odd("GIF", "gif.jpg", by_pillow(indexed, "GIF"), pixels)
    yield Odd("GIF, grey", "grey.gif", by_pillow(GREY, "GIF"), GREY)
    yield Odd("GIF, transparent colour", "trns.gif", by_pillow(indexed, "GIF", transparency=3), pixels)
    yield Odd("GIF, animated", "animated.gif", by_pillow(indexed, "GIF", **frames), pixels)
    yield from cuts("GIF", by_pillow(indexed, "GIF"), ".gif", (0.05, 0.3, 0.7))
    data = by_pillow(SMOOTH, "AVIF")
    yield Odd("AVIF", "plain.avif", data, read(data))
    for orientation in (1, 2, 6):
        data = by_pillow(SMOOTH, "AVIF", exif=exif(orientation))
        yield Odd("AVIF, turned", f"turned{orientation}.avif", data, turned(read(data), orientation))
    yield from cuts("AVIF", data, ".avif")
    for name, values, expected in (
        ("rgb", COLOUR, COLOUR),
        ("grey", GREY, GREY),
        ("16", DEEP[..., 0], DEEP[..., 0] >> 8),
    ):
        yield Odd("JPEG 2000", f"{name}.jp2", by_pillow(values, "JPEG2000"), expected)
    yield Odd("JPEG 2000", "alpha.jp2", by_pillow(np.dstack([COLOUR, ALPHA]), "JPEG2000"), COLOUR)
    yield from cuts("JPEG 2000", by_pillow(COLOUR, "JPEG2000"), ".jp2", (0.1, 0.5, 0.8))


# What is no image, and what is none that is read


def wrong_content() -> Iterator[Odd]:
    for kind in ("ICO", "TGA", "PCX", "SGI", "DDS"):
        yield Odd("a format that is not read", f"{kind.lower()}.png", by_pillow(COLOUR, kind), REFUSED)
    hdr = cv2.imencode(".hdr", COLOUR.astype(np.float32))[1].tobytes()
    yield Odd("a format that is not read", "radiance.jpg", hdr, REFUSED)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    yield Odd("a format that is not read", "heic.jpg", heic, REFUSED)
    pam = b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\nabcdef"
    yield Odd("a format that is not read", "pam.ppm", pam, REFUSED)
    texts = {"page.jpg": b"<!doctype html><p>404</p>", "words.png": b"no image\n" * 9, "vector.png": b"<svg/>"}
    for name, data in texts.items():
        yield Odd("text", name, data, REFUSED)
    for suffix in (".jpg", ".png", ".tif", ".gif"):
        yield Odd("an empty file", f"empty{suffix}", b"", REFUSED)
        yield Odd("zeros", f"zeros{suffix}", bytes(4096), REFUSED)
        yield Odd("random bytes", f"random{suffix}", RNG.bytes(4096), REFUSED)
    for name, start in {
        "archive.jpg": b"PK\3\4",
        "paper.png": b"%PDF-1.7\n",
        "film.webp": b"\0\0\0\x18ftypmp42",
    }.items():
        yield Odd("another kind of file", name, start + bytes(500), REFUSED)
    for name, start in {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF\0\0\0\0WEBP"}.items():
        yield Odd("the first bytes of an image alone", f"start.{name}", start, REFUSED)
    for name, start in {"gif": b"GIF89a", "tif": b"II*\0", "bmp": b"BM", "ppm": b"P6\n3 "}.items():
        yield Odd("the first bytes of an image alone", f"start.{name}", start, REFUSED)


def special() -> Iterator[Odd]:
    def listen(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))  # a path of at most a hundred characters

    makers = {"pipe.jpg": os.mkfifo, "socket.png": listen, "folder.jpg": os.mkdir}
    for target in ("/dev/null", "/dev/zero", "nowhere"):
        makers[f"{os.path.basename(target)}.jpg"] = lambda path, target=target: os.symlink(target, path)
    for name, make in makers.items():
        yield Odd("a pipe, socket, device, folder or link to nowhere", name, make, LEFT_OUT)
    for suffix in (".heic", ".jxl", ".SVG", ".psd", ".cr2"):
        yield Odd("a suffix that is not read", f"x{suffix}", b"x", LEFT_OUT)
    yield Odd("other files", "notes.txt", b"x", LEFT_OUT)


def outcome(odd: Odd) -> str:
    if odd.expected is LEFT_OUT:
        return "left out"
    return "refused" if isinstance(odd.expected, str) else "read"


def table() -> str:
    """Kinds, how many of each, and what happens, in Markdown."""
    rows = Counter((odd.kind, outcome(odd)) for odd in odd_files())
    lines = [f"| {kind} | {count} | {what} |" for (kind, what), count in rows.items()]
    totals = Counter(map(outcome, odd_files()))
    found = ", ".join(f"{count} {what}" for what, count in totals.items())
    kinds = len({odd.kind for odd in odd_files()})
    return "\n".join(["| kind | files | |", "|---|---|---|", *lines, f"| {kinds} kinds | {totals.total()} | {found} |"])


if __name__ == "__main__":
    print(table())
