"""Megapixels a second that one core decodes of each image format; a crop of a large TIFF against the whole of it.

Formats that need a package of the extra `tiff` are measured where it is installed. docs/data.md explains the figures.
"""

import importlib.util
import io
import multiprocessing
import re
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Num

from benchmarks.measure import machine
from benchmarks.tables import Column, table
from greenjax.config.flags import positive
from greenjax.data.encoded import Encoded, load
from greenjax.data.reading import PICTURE, Box, Reading, Size
from greenjax.data.sources.folder import read_file

FLAGS = {
    "--repeats": dict(type=positive, default=15, help="measurements of each; the median counts"),
    "--scene": dict(type=positive, default=None, metavar="SIDE", help="a TIFF of SIDE x SIDE pixels as well"),
}
SIZE = (768, 1024)  # of the picture
TILE, CROP = 512, 1024  # of the scene, in pixels
COLUMNS: list[Column] = [
    ("file", "file", 1, ""),
    ("megapixels/s", "pixels_per_second", 1e6, ".0f"),
    ("bytes/pixel", "bytes_per_pixel", 1, ".2f"),
]
SCENE: list[Column] = [
    ("read", "read", 1, ""),
    ("s", "seconds", 1, ".3f"),
    ("peak MB", "peak_bytes", 1e6, ",.0f"),
]


def run(repeats: int, scene: int | None) -> dict[str, Any]:
    """Times the decoder of every format, and reads the scene in processes of its own."""
    cv2.setNumThreads(0)
    files = {name: (Encoded(data, name), reading) for name, (data, reading) in kinds().items()}
    seconds: dict[str, list[float]] = {name: [] for name in files}
    for repeat in range(repeats + 1):
        for name, (encoded, reading) in files.items():
            start = time.process_time()
            encoded.decode(reading=reading)
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    pixels = SIZE[0] * SIZE[1]
    rows = [
        {
            "file": name,
            "pixels_per_second": pixels / statistics.median(times),
            "bytes_per_pixel": len(files[name][0].data) / pixels,
        }
        for name, times in seconds.items()
    ]
    report = {**machine(), "repeats": repeats, "rows": rows}
    print(f"one core of {report['cores']}, a picture of {SIZE[1]} x {SIZE[0]}, medians of {repeats} turns")
    print(table(COLUMNS, rows))
    if scene:
        report["scene"] = scene_rows(scene)
        print(f"a TIFF of {scene} x {scene} pixels in tiles of {TILE}, Deflate; crops of {CROP} x {CROP}")
        print(table(SCENE, report["scene"]))
    return report


def kinds() -> dict[str, tuple[bytes, Reading]]:
    """A file of each format, by name, and how it is read."""
    picture = photograph(*SIZE)
    deep = picture.astype(np.uint16) * 257
    found = {
        "JPEG, quality 90": (by_opencv(picture, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 90), PICTURE),
        "PNG": (by_opencv(picture, ".png"), PICTURE),
        "PNG, uint16": (by_opencv(deep, ".png"), Reading("uint16", 3)),
        "WebP, quality 90": (by_opencv(picture, ".webp", cv2.IMWRITE_WEBP_QUALITY, 90), PICTURE),
        "JPEG 2000, 10:1": (by_pillow(picture, "JPEG2000", quality_mode="rates", quality_layers=[10]), PICTURE),
        "JPEG 2000, uint16": (by_opencv(deep, ".jp2"), Reading("uint16", 3)),
        "AVIF, quality 75": (by_pillow(picture, "AVIF", quality=75), PICTURE),
        "BMP": (by_pillow(picture, "BMP"), PICTURE),
        "GIF": (by_pillow(picture, "GIF"), PICTURE),
        "PPM": (by_pillow(picture, "PPM"), PICTURE),
        "TIFF picture": (by_pillow(picture, "TIFF"), PICTURE),
        "TIFF picture, Deflate": (by_pillow(picture, "TIFF", compression="tiff_adobe_deflate"), PICTURE),
        "npy, uint16 x 13": (by_numpy(channels(deep, 13)), Reading("uint16", 13)),
    }
    if importlib.util.find_spec("tifffile") and importlib.util.find_spec("imagecodecs"):
        bands = Reading("uint16", 13)
        found["TIFF, uint16 x 13"] = by_tifffile(channels(deep, 13)), bands
        found["TIFF, uint16 x 13, Deflate"] = by_tifffile(channels(deep, 13), compression="deflate"), bands
    return found


def photograph(height: int, width: int) -> Num[np.ndarray, "h w 3"]:
    from sklearn.datasets import load_sample_images

    return cv2.resize(load_sample_images().images[0], (width, height), interpolation=cv2.INTER_CUBIC)


def channels(image: Num[np.ndarray, "h w 3"], count: int) -> Num[np.ndarray, "h w c"]:
    return np.ascontiguousarray(np.tile(image, (1, 1, -(-count // 3)))[:, :, :count])


def by_opencv(image: Num[np.ndarray, "h w 3"], suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, image[:, :, ::-1], options)[1].tobytes()


def by_pillow(image: Num[np.ndarray, "h w 3"], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def by_numpy(image: Num[np.ndarray, "h w c"]) -> bytes:
    file = io.BytesIO()
    np.save(file, image)
    return file.getvalue()


def by_tifffile(image: Num[np.ndarray, "h w c"], **options: Any) -> bytes:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, image, photometric="minisblack", planarconfig="contig", tile=(256, 256), **options)
    return file.getvalue()


# A scene


def scene_rows(side: int) -> list[dict[str, Any]]:
    """Processor seconds and peak memory of a crop of a scene, and of the whole scene."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scene.tif")
        write_scene(path, side)
        for name, read in (("a crop", read_crop), ("the whole", read_whole)):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                seconds, peak = process.apply(read, (str(path),))
            rows.append({"read": name, "seconds": seconds, "peak_bytes": peak})
    return rows


def write_scene(path: Path, side: int) -> None:
    """A TIFF of RGB in tiles, no two of them alike."""
    import tifffile

    tile, across = photograph(TILE, TILE), -(-side // TILE)
    tiles = (np.roll(tile, number, axis=0) for number in range(across * across))
    options: dict[str, Any] = dict(photometric="rgb", tile=(TILE, TILE), compression="deflate")
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(tiles, shape=(side, side, 3), dtype=np.uint8, **options)


def read_crop(path: str) -> tuple[float, int]:
    """Median processor seconds of crops at random places, and the bytes by which they raised the peak."""
    rng, before, seconds = np.random.default_rng(0), peak(), []
    for _ in range(9):
        start = time.process_time()
        top, left = rng.random(2)
        load(read_file(path), partial(crop, top, left))
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), peak() - before


def crop(top: float, left: float, size: Size) -> tuple[Box, Size]:
    """A box at these shares of the room that an image of `size` leaves for it."""
    return (int(top * (size[0] - CROP)), int(left * (size[1] - CROP)), CROP, CROP), (224, 224)


def read_whole(path: str) -> tuple[float, int]:
    """Processor seconds of the whole scene, and the bytes by which it raised the peak."""
    before, start = peak(), time.process_time()
    load(read_file(path), lambda size: ((0, 0, *size), (224, 224)))
    return time.process_time() - start, peak() - before


def peak() -> int:
    """The peak memory of this process, in bytes. `resource` would begin at that of its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
