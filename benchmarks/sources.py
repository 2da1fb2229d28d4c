"""Photographs a second from each kind of source, of the same JPEG files, as shares of those from a folder.

Sources take turns on one core. `huggingface` is measured where the package `datasets` is installed.
docs/input_speed.md explains the figures.
"""

import importlib.util
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from benchmarks.inputs import EPOCH, folder_config, stream, write_photographs
from benchmarks.measure import TIMING, machine, ratio_quartiles
from benchmarks.tables import Column, table
from greenjax.data.augment import RandomView
from greenjax.data.encoded import Encoded, undecoded
from greenjax.data.open import open_source
from greenjax.data.prepare import How, prepare
from greenjax.data.worker_process import keep_freed_memory

FLAGS = TIMING
SIZE, COUNT = (375, 500), 64  # of the photographs
READ = 4 * COUNT  # images of a turn that only reads
COLUMNS: list[Column] = [
    ("source", "source", 1, ""),
    ("images/s", "images_per_second", 1, ".0f"),
    ("x folder", "times_folder", 1, ".2f"),
    ("quarter of turns below", "low", 1, ".2f"),
    ("above", "high", 1, ".2f"),
    ("reading, us", "read_seconds", 1e-6, ".0f"),
]


def run(batch: int, repeats: int) -> dict[str, Any]:
    """Times each source twice: reading a stored image, and making a training view of it."""
    cv2.setNumThreads(0)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "photographs")
        write_photographs(root, SIZE, COUNT)
        configs = same_images(root)
        views = {name: stream(config, RandomView.from_config(config)) for name, config in configs.items()}
        seconds = turns(views, batch, repeats)
        sources = {name: open_source(config.data, config.data.split) for name, config in configs.items()}
        reads = {name: lambda i, source=source: undecoded(source, i % COUNT) for name, source in sources.items()}
        reading = turns(reads, READ, repeats)
    rows = [row(name, seconds, reading) for name in configs]
    report = {**machine(), "batch": batch, "repeats": repeats, "rows": rows}
    print(f"one core of {report['cores']}, medians of {repeats} turns of {batch} images, {READ} for reading")
    print(table(COLUMNS, rows))
    return report


def same_images(root: Path) -> dict[str, ConfigDict]:
    """The settings of each source of the JPEG files in `root`, in the same order."""
    folder = folder_config(root)
    names = list(open_source(folder.data, "all").names)
    (root / "list.txt").write_text("\n".join(names))
    with tarfile.open(root.with_suffix(".tar"), "w") as tar:
        for name in names:
            tar.add(root / name, name)
    records, side = root.with_name("records"), min(SIZE)  # JPEGs that are small enough keep their bytes
    list(prepare(folder, records, How(side, "jpeg"), unlabelled=True))
    configs = {
        "folder": folder,
        "list": folder_config(root / "list.txt", source="list"),
        "tar": folder_config(root.with_suffix(".tar"), source="tar"),
        "records": folder_config(records, source="records"),
    }
    if importlib.util.find_spec("datasets"):
        saved = root.with_name("saved")
        save(root, names, saved)
        configs["huggingface"] = folder_config(saved, source="huggingface")
    check(configs)
    return configs


def save(root: Path, names: list[str], saved: Path) -> None:
    """Writes the files as a data set of Hugging Face's library."""
    import datasets

    datasets.disable_progress_bars()
    images = [{"bytes": (root / name).read_bytes(), "path": name} for name in names]
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict({"image": images}, features=features).save_to_disk(saved)


def check(configs: dict[str, ConfigDict]) -> None:
    """Asserts that all sources have the bytes of the folder's files in the folder's order."""
    expected: list[bytes] = []
    for name, config in configs.items():
        source = open_source(config.data, "all")
        items = [source.encoded(i) for i in range(len(source))]
        found = [bytes(item.data) for item in items if isinstance(item, Encoded)]
        expected = expected or found
        assert found == expected and len(found) == COUNT, name


def turns(makes: dict[str, Any], batch: int, repeats: int) -> dict[str, np.ndarray]:
    """Processor seconds an image, by turn; `repeats` rounds, in which each takes its turn from another place on."""
    seconds: dict[str, list[float]] = {name: [] for name in makes}
    names = list(makes)
    for repeat in range(repeats + 1):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            start = time.process_time()
            for index in range(repeat * batch, (repeat + 1) * batch):
                makes[name](index % EPOCH)
            if repeat:  # the first round warms up
                seconds[name].append((time.process_time() - start) / batch)
    return {name: np.array(times) for name, times in seconds.items()}


def row(name: str, seconds: dict[str, np.ndarray], reading: dict[str, np.ndarray]) -> dict[str, Any]:
    low, median, high = ratio_quartiles(seconds["folder"], seconds[name])
    return {
        "source": name,
        "images_per_second": 1 / statistics.median(seconds[name]),
        "times_folder": median,
        "low": low,
        "high": high,
        "read_seconds": statistics.median(reading[name]),
    }
