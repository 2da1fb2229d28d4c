"""The start of a source of many image files, and what their names take of a data worker's memory.

Makes empty files in a temporary folder, with a cache folder of its own. docs/input_speed.md has figures.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.inputs import folder_config
from benchmarks.measure import machine
from benchmarks.tables import Column, table
from greenjax.config.flags import positive
from greenjax.data.open import open_labelled, open_source
from greenjax.data.sources.kept_listing import SETTLED
from greenjax.data.workers import WorkerPool

FLAGS = {
    "--images": dict(type=positive, default=1_300_000, help="empty files"),
    "--folders": dict(type=positive, default=1_000, help="class folders that they lie in"),
}
WAYS: dict[str, Callable[[ConfigDict, str], Any]] = {"images": open_source, "images and labels": open_labelled}
READ = 2000  # names that a worker reads for each of its batches
BATCHES = 6
COLUMNS: list[Column] = [
    ("source of", "way", 1, ""),
    ("first start s", "first", 1, ".2f"),
    ("later starts s", "later", 1, ".2f"),
    ("worker's own MB", "worker", 1e6, ".0f"),
]


def run(images: int, folders: int) -> dict[str, Any]:
    """Lists the folders, then starts from the listing that was kept."""
    report = {**machine(), "images": images, "folders": folders}
    with own_cache() as root:
        write_files(root, images, folders)
        time.sleep(SETTLED + 1)  # folders that have just changed are not kept
        data = folder_config(root).data
        report["rows"] = [{"way": "nothing", "worker": worker_memory(None)}]
        for name, opened in WAYS.items():
            shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
            first, _ = timed(opened, data)
            later, source = timed(opened, data)
            report["rows"].append({"way": name, "first": first, "later": later, "worker": worker_memory(source)})
    print(f"{images:,} empty files in {folders:,} folders")
    print(table(COLUMNS, report["rows"]))
    return report


@contextmanager
def own_cache() -> Iterator[Path]:
    """A temporary folder for images, and another one in place of the user's cache folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        try:
            yield Path(folder)
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            os.environ.update({} if before is None else {"XDG_CACHE_HOME": before})


def write_files(root: Path, images: int, folders: int) -> None:
    for number in range(images):
        folder = root / f"n{number % folders:08d}"
        if number < folders:
            folder.mkdir()
        (folder / f"{folder.name}_{number}.JPEG").touch()


def timed(opened: Callable[[ConfigDict, str], Any], data: ConfigDict) -> tuple[float, Any]:
    """Seconds of opening the source, and the source."""
    start = time.perf_counter()
    source = opened(data, "all")
    return time.perf_counter() - start, source


@dataclass(frozen=True)
class Reader:
    """Reads names and labels in a worker, and tells how much memory is the worker's own."""

    source: Any

    def __call__(self, step: int) -> int | None:
        if self.source is not None:
            for row in np.random.default_rng(step).integers(len(self.source), size=READ).tolist():
                self.source.name_of(row)
                if hasattr(self.source, "label"):
                    self.source.label(row)
        return own_memory()


def own_memory() -> int | None:
    """Bytes of this process's memory that are in no file; None on systems that do not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), None)


def worker_memory(source: Any) -> int | None:
    """Of one of two workers that have read some names."""
    pool = WorkerPool(Reader(source), 0, 2)
    found = [next(pool) for _ in range(BATCHES)]
    pool.close()
    return found[-1]
