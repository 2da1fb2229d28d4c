"""Photographs that a core decodes and crops in a second, from files and from prepared records.

Compares with bare JPEG decoding, the lower limit of time for JPEG files, and with Pillow on the same boxes. Where
simplejpeg or PyTurboJPEG is installed, it times their decoders too. docs/input_speed.md explains the figures.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.measure import TIMING, machine
from benchmarks.tables import Column, table
from greenjax.config import resolve
from greenjax.data.augment import TRIES, RandomView, random_box, uniforms
from greenjax.data.encoded import undecoded
from greenjax.data.labels import Listed
from greenjax.data.loader import labelled_batches
from greenjax.data.open import open_source
from greenjax.data.prepare import How, prepare
from greenjax.data.stream import Stream, shuffled
from greenjax.data.worker_process import keep_freed_memory

FLAGS = TIMING
PHOTOGRAPHS = {"500 x 375": ((375, 500), 64), "4000 x 3000": ((3000, 4000), 4)}  # size, and how many files
QUALITY = 90
PREPARED = (("jpeg", 256), ("raw", 256), ("raw", 224))  # encoding, pixels of the shorter side
LARGE_BATCH = 2  # of photographs with a side from 1000 pixels on
EPOCH = 50_000  # images of an epoch, because shuffling few costs more for each image
LOADED = 12  # batches of the timed loader
BATCH = 64  # images of such a batch
WORKERS = (0, 2)  # data.workers
ROWS: list[Column] = [
    ("photographs", "photographs", 1, ""),
    ("by", "way", 1, ""),
    ("images/s", "images_per_second", 1, ".0f"),
    ("x Pillow", "times_pillow", 1, ".2f"),
    ("x decode", "times_decode", 1, ".2f"),
    ("bytes/image", "bytes_per_image", 1, ",.0f"),
]
LOADER: list[Column] = [
    ("from", "source", 1, ""),
    ("workers", "workers", 1, "d"),
    ("images/s", "images_per_second", 1, ".0f"),
]


def run(batch: int, repeats: int) -> dict[str, Any]:
    """Times every way on one core, then the whole loader with and without worker processes."""
    cv2.setNumThreads(0)
    keep_freed_memory()
    report = {**machine(), "batch": batch, "repeats": repeats, "rows": [], "loader": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, count) in PHOTOGRAPHS.items():
            root = Path(folder, name.replace(" ", ""))
            write_photographs(root, size, count)
            small = max(size) < 1000
            report["rows"] += rows_of(name, ways_to_read(root, small), batch if small else LARGE_BATCH, repeats)
            print(f"measured {name}", flush=True)
        report["loader"] = loader_rows(Path(folder, next(iter(PHOTOGRAPHS)).replace(" ", "")))
    images = f"{batch} images, {LARGE_BATCH} of large ones"
    print(f"one core of {report['cores']}, median of {repeats} interleaved runs of {images}")
    print(table(ROWS, report["rows"]))
    print(f"whole loader, batches of {BATCH}")
    print(table(LOADER, report["loader"]))
    return report


def write_photographs(root: Path, size: tuple[int, int], count: int) -> None:
    """JPEGs of random parts of scikit-learn's two photographs, at least three quarters of each side of the largest."""
    from sklearn.datasets import load_sample_images

    root.mkdir()
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for i in range(count):
        image = photographs[i % 2]
        fitting = min(image.shape[0] / size[0], image.shape[1] / size[1]) * rng.uniform(0.75, 1)
        height, width = int(size[0] * fitting), int(size[1] * fitting)
        top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
        part = image[top : top + height, left : left + width]
        part = cv2.resize(part, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / f"{i}.jpg"), part[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, QUALITY))


@dataclass(frozen=True)
class Way:
    """One way from a stored image to a crop."""

    make: Callable[[int], Any]  # of image i of the stream
    bytes: float  # stored for an image


@dataclass(frozen=True)
class Repeated:
    """The images of a source, repeated up to the size of a real data set."""

    source: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return self.source[index % len(self.source)]

    def encoded(self, index: int) -> Any:
        return undecoded(self.source, index % len(self.source))


def folder_config(root: Path, **data: Any) -> ConfigDict:
    settings = {"source": "folder", "path": str(root), "split": "all", "batch_size": BATCH, **data}
    model = {"num_classes": 1}
    return resolve({"task": "finetune", "steps": 1, "model": model, "data": settings})


def ways_to_read(root: Path, small: bool) -> dict[str, Way]:
    """Every way from the JPEG files of a folder to crops, and from records prepared of them."""
    paths = sorted(root.iterdir())
    config = folder_config(root)
    view, size = RandomView.from_config(config), mean_size(paths)
    encoded = [path.read_bytes() for path in paths]
    order = shuffled(EPOCH, config.seed)
    ways = {
        name: Way(lambda i, decode=decode: decode(encoded[order[i] % len(paths)]), size)
        for name, decode in decoders().items()
    }
    ways |= {
        "Pillow": Way(lambda i: by_pillow(paths[order[i] % len(paths)], view, i), size),
        "greenjax, JPEG files": Way(stream(config, view), size),
    }
    for encoding, side in PREPARED if small else ():
        records = prepared(root, encoding, side)
        stored = mean_size(records.glob("*.array_record")) / len(paths)
        from_records = folder_config(records, source="records")
        ways[f"greenjax, {encoding} records, {side}"] = Way(stream(from_records, view), stored)
    return ways


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Functions that decode a whole JPEG, by name: OpenCV, and other packages where they are installed."""
    found: dict[str, Callable[[bytes], Any]] = {
        "decode": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    }
    with suppress(ImportError):
        found["simplejpeg decodes"] = import_module("simplejpeg").decode_jpeg
    with suppress(ImportError, RuntimeError):  # RuntimeError: no libturbojpeg
        found["PyTurboJPEG decodes"] = import_module("turbojpeg").TurboJPEG().decode
    return found


def prepared(root: Path, encoding: str, side: int) -> Path:
    """The records of a folder's images."""
    output = root.with_name(f"{root.name}_{encoding}_{side}")
    if not output.exists():
        list(prepare(folder_config(root), output, How(side, encoding), unlabelled=True))
    return output


def mean_size(paths: Any) -> float:
    return statistics.fmean(path.stat().st_size for path in paths)


def stream(config: ConfigDict, view: RandomView) -> Callable[[int], Any]:
    """The function of a worker: position in the stream -> training image."""
    source = Repeated(open_source(config.data, config.data.split), EPOCH)
    return Stream(source, shuffled(EPOCH, config.seed), view).__getitem__


def by_pillow(path: Path, view: RandomView, index: int) -> UInt8[np.ndarray, "h w c"]:
    """The same crop by Pillow, as torchvision's transforms make it."""
    drawn = uniforms(view.seed, index, 2 * TRIES + 3)
    with Image.open(path) as file:
        image = file.convert("RGB")
    top, left, height, width = random_box((image.height, image.width), view.scale, view.ratio, drawn)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((view.size[1], view.size[0]), Image.Resampling.BICUBIC)
    if drawn[-1] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def rows_of(photographs: str, ways: dict[str, Way], batch: int, repeats: int) -> list[dict[str, Any]]:
    """The rate of each way by processor time, which other processes disturb little."""
    seconds = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            for index in range(repeat * batch, (repeat + 1) * batch):
                way.make(index)
            if repeat:  # the first run warms up
                seconds[name].append((time.process_time() - start) / batch)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "photographs": photographs,
            "way": name,
            "images_per_second": 1 / median[name],
            "times_pillow": median["Pillow"] / median[name],
            "times_decode": median["decode"] / median[name],
            "bytes_per_image": way.bytes,
        }
        for name, way in ways.items()
    ]


def loader_rows(root: Path) -> list[dict[str, Any]]:
    """The rate of training batches by wall time, with worker processes and in the main process."""
    rows = []
    for name, folder in (("JPEG files", root), ("raw records", prepared(root, "raw", 256))):
        kind = "folder" if folder == root else "records"
        for workers in WORKERS:
            config = folder_config(folder, source=kind, workers=workers)
            images = Repeated(open_source(config.data, "all"), EPOCH)
            source = Listed(images, np.zeros(EPOCH, np.int32), ("photograph",))
            batches = labelled_batches(config, source)
            for _ in range(2 * max(workers, 1)):  # until all workers run
                next(batches)
            start = time.perf_counter()
            for _ in range(LOADED):
                next(batches)
            seconds = time.perf_counter() - start
            batches.close()
            rows.append({"source": name, "workers": workers, "images_per_second": LOADED * BATCH / seconds})
    return rows
