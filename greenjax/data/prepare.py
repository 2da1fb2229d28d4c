"""Shrinks the images of any source once, into ArrayRecord: training then reads them several times as fast.

    python -m greenjax.data.prepare --config C.py --output DIR [--size 256] [--encoding raw|jpeg] [--splits A B]
        [--workers N] [--config.data.path=... and other keys]

    python -m greenjax.main --config C.py --config.data.source=records --config.data.path=DIR ...

Every split that the config names is prepared whole, under its own name: slices such as train[:98%] are taken when it
is read. Stopped or killed, the same command goes on where it was. docs/data.md has sizes and times.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from greenjax.config import flags
from greenjax.data.augment import shrinkage
from greenjax.data.encoded import DecodeError, Encoded, Image, Need, Size, load, size_of, undecoded
from greenjax.data.listing import listing
from greenjax.data.open import open_labelled, open_source, parse_split
from greenjax.data.sources.array_record import count_records
from greenjax.data.sources.records import (
    DESCRIPTION,
    ENCODINGS,
    REMEDY,
    labels_path,
    read_description,
    shard_paths,
    to_raw,
)
from greenjax.data.workers import keep_freed_memory
from greenjax.errors import InputError
from greenjax.runtime.console import rich_console, say
from greenjax.runtime.files import expanded, replace_text
from greenjax.runtime.lock import LOCK, held

PER_SHARD = 4096  # images; raw ones of 256 px make about 1 GB
QUALITY = 95  # of JPEGs that are encoded anew
WRITING = "group_size:1,uncompressed"  # one image a read, as it is


@dataclass(frozen=True)
class How:
    """What becomes of an image."""

    size: int  # of the shorter side, at most
    encoding: str


@dataclass(frozen=True)
class Split:
    """A whole split of the source."""

    name: str
    images: Any  # a Source, or a LabelledSource where there are classes
    classes: tuple[str, ...] | None


def main(argv: list[str]) -> None:
    parser = make_parser()
    try:
        arguments, config = flags.parse_beside(parser, argv)
        output, how = arguments.output, How(arguments.size, arguments.encoding)
        for line in prepare(config, output, how, arguments.splits, arguments.unlabelled, arguments.workers):
            say(line)
    except (InputError, OSError) as error:  # a full disk, say: finished shards stay
        sys.exit(f"greenjax.data.prepare: {error}")
    except KeyboardInterrupt:
        sys.exit("greenjax.data.prepare: stopped; the same command goes on from here")


def make_parser() -> flags.Parser:
    parser = flags.Parser("python -m greenjax.data.prepare", __doc__)
    parser.add_argument(
        "--output", type=flags.folder, required=True, help="directory for records, new or to go on with"
    )
    parser.add_argument(
        "--size", type=flags.positive, default=256, help="the shorter side in pixels; smaller ones stay"
    )
    parser.add_argument("--encoding", choices=ENCODINGS, default="raw", help="raw: fastest; jpeg: a tenth of the space")
    parser.add_argument("--splits", nargs="+", help="default: data.split and data.eval_split")
    parser.add_argument("--unlabelled", action="store_true", help="leave labels out")
    parser.add_argument("--workers", type=flags.positive, default=os.cpu_count() or 1, help="threads")
    return parser


def prepare(
    config: ConfigDict,
    output: Path,
    how: How,
    names: Sequence[str] | None = None,
    unlabelled: bool = False,
    workers: int = 1,
) -> Iterator[str]:
    """Converts splits one after the other, or what is left of them; a line for each.

    Without `names` those of the config.
    """
    data = config.data.copy_and_resolve_references()
    data.per_class = 0
    names = names or [split for split in (data.split, data.eval_split) if split]
    names = list(dict.fromkeys(parse_split(name)[0] for name in names))
    splits = [open_split(data, name, unlabelled) for name in names]
    cv2.setNumThreads(0)  # the threads here are the parallelism
    keep_freed_memory()
    with held(output, "--output"):
        description = begin(output, how, data, splits)
        for split in splits:
            yield convert(split, output, how, description, workers)


def open_split(data: ConfigDict, name: str, unlabelled: bool) -> Split:
    """A split with its labels, or without them where it has none."""
    if unlabelled:
        return Split(name, open_source(data, name), None)
    try:
        source = open_labelled(data, name)
        return Split(name, source, tuple(source.classes))
    except InputError as error:
        source = open_source(data, name)  # what is wrong with more than the labels is said here
        logging.warning("%s is prepared without labels: %s", name, error)
        return Split(name, source, None)


def begin(output: Path, how: How, data: ConfigDict, splits: list[Split]) -> dict[str, Any]:
    """What records.json says at the start. Raises InputError where the directory holds anything else."""
    wanted = {"encoding": how.encoding, "size": how.size, "source": data.source, "name": data.name}
    wanted["path"] = os.path.abspath(expanded(data.path)) if data.path else ""
    if (output / DESCRIPTION).exists():
        description = read_description(output)
        check_same(output, {key: description.get(key) for key in wanted}, wanted)
    elif any(path.name != LOCK for path in output.iterdir()):
        raise InputError(f"output {str(output)!r} is there already: expected a new directory, or one to go on with")
    else:
        description = {**wanted, "splits": {}}
    for split in splits:
        new = {"images": None, "left_out": None, "of": len(split.images), "shards": None, "classes": split.classes}
        new["classes"] = None if split.classes is None else list(split.classes)
        new["listing"] = listing(split.images)
        found = description["splits"].setdefault(split.name, new)
        # A directory of an earlier version has no listing.
        parts = {"of": "of", "classes": "classes", "listing": "digest of names and order"}
        before, now = (
            {f"{split.name} {told}": entry.get(part, new[part]) for part, told in parts.items()}
            for entry in (found, new)
        )
        check_same(output, before, now)
    write_description(output, description)
    return description


def check_same(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, value in now.items():
        if before[key] != value:
            raise InputError(
                f"output {str(output)!r} was begun with {key} {before[key]!r}: expected that, not {value!r}"
            )


def write_description(output: Path, description: dict[str, Any]) -> None:
    replace_text(output / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def convert(split: Split, output: Path, how: How, description: dict[str, Any], workers: int) -> str:
    """Writes the shards of a split that are not there yet, then says in records.json that it is whole."""
    count = len(split.images)
    paths = shard_paths(output, split.name, -(-count // PER_SHARD))
    parts = {path: range(i * PER_SHARD, min((i + 1) * PER_SHARD, count)) for i, path in enumerate(paths)}
    missing = {path: rows for path, rows in parts.items() if not path.exists()}
    done, stop = count - sum(map(len, missing.values())), Event()
    with progress(split.name, count, done) as advance, ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(write_shard, path, split, rows, how, advance, stop) for path, rows in missing.items()]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    shards = count_records([os.fspath(path) for path in paths], REMEDY)
    entry = description["splits"][split.name]
    entry |= {"images": sum(shards), "left_out": count - sum(shards), "shards": shards}
    write_description(output, description)
    size = sum(path.stat().st_size for path in paths)
    return f"{split.name}: {sum(shards)} images in {size / 1e6:.1f} MB, {count - sum(shards)} left out; {output}"


@contextmanager
def progress(name: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    """A line on the terminal; what it gives counts one image more, from any thread."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=rich_console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda: bar.advance(task)


def write_shard(path: Path, split: Split, rows: range, how: How, advance: Callable[[], None], stop: Event) -> None:
    """Some images of a split, in order; the file is there when it is whole, and its labels before it."""
    from array_record.python.array_record_module import ArrayRecordWriter

    draft, labels = path.with_name(f".{path.name}.draft"), []
    writer = ArrayRecordWriter(os.fspath(draft), WRITING)
    try:
        for row in rows:
            if stop.is_set():
                return
            try:
                item = undecoded(split.images, row)
                image, label = (item, -1) if split.classes is None else item
                writer.write(to_record(image, how))
                labels.append(label)
            except DecodeError as error:
                logging.warning("%s; it is left out", error)
            advance()
    finally:
        writer.close()
    if split.classes is not None:
        draft_labels = draft.with_suffix(".npy")
        np.save(draft_labels, np.array(labels, np.int32))
        os.replace(draft_labels, labels_path(path))
    os.replace(draft, path)


def to_record(image: Image, how: How) -> bytes:
    """An image as it is stored. A JPEG that is small enough keeps its bytes. Raises DecodeError."""
    pixels, full = shrunk(image, how.size)
    if how.encoding == "raw":
        return to_raw(pixels)
    if isinstance(image, Encoded) and image.header is not None and size_of(pixels) == full:
        return image.data
    if pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()


def shrunk(image: Image, size: int) -> tuple[UInt8[np.ndarray, "h w c"], Size]:
    """The image with its shorter side at most `size`, and the size that it had."""

    def fitting(full: Size) -> Size:
        scale = min(1.0, size / min(full))
        return max(1, round(full[0] * scale)), max(1, round(full[1] * scale))

    pixels, full, _ = load(image, lambda full: Need(full[0], shrinkage(full, fitting(full))))
    height, width = fitting(full)
    if size_of(pixels) == (height, width):
        return pixels, full
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1), full


if __name__ == "__main__":
    main(sys.argv)
