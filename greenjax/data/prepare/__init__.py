"""Prepares records: the images of any source, shrunk, in the files that sources/records.py reads."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
from absl import logging
from jaxtyping import Num
from ml_collections import ConfigDict

from greenjax.data.augment import reading_of, resize
from greenjax.data.encoded import DecodeError, Encoded, Image, load, size_of, undecoded
from greenjax.data.frames import has_more
from greenjax.data.listing import listing
from greenjax.data.open import open_labelled, open_source, parse_split
from greenjax.data.reading import PICTURE, Box, Reading, Size
from greenjax.data.remote import is_url
from greenjax.data.sources.array_record import count_records
from greenjax.data.sources.base import paths_of
from greenjax.data.sources.records import DESCRIPTION, REMEDY, labels_path, read_description, shard_names, to_raw
from greenjax.data.worker_process import keep_freed_memory
from greenjax.errors import InputError, NoLabels, in_a_line
from greenjax.runtime.console import progress_bar, warn_once
from greenjax.runtime.files import expanded, replace_text, replacing
from greenjax.runtime.lock import LOCK, held

PER_SHARD = 4096  # images; raw ones of 256 px make about 1 GB
QUALITY = 95  # of JPEGs that are encoded anew
LONGEST_JPEG = 65_500  # pixels of a side: libjpeg takes no more
READ = ("dtype", "alpha", "page", "no_data")  # of a Reading: what the pixels depend on
WRITING = "group_size:1,uncompressed"  # a read takes one image, as it is


@dataclass(frozen=True)
class How:
    """How an image is stored."""

    size: int  # of the shorter side in pixels, at most
    encoding: str
    reading: Reading = PICTURE


@dataclass(frozen=True)
class Split:
    """A whole split of the source."""

    name: str
    images: Any  # with labels where there are classes
    classes: tuple[str, ...] | None


def prepare(
    config: ConfigDict,
    output: Path,
    how: How,
    names: Sequence[str] | None = None,
    unlabelled: bool = False,
    workers: int = 1,
) -> Iterator[str]:
    """Converts splits, or the rest of them, one after the other; yields a line for each.

    Without `names`, converts the splits that the config names.
    """
    how = replace(how, reading=replace(reading_of(config), channels=()))  # all channels are kept
    if how.encoding == "jpeg" and how.reading != PICTURE:  # JPEG mixes pixels without data into others
        raise InputError("--encoding is jpeg: expected raw for images that are not 8 bits of grey or RGB, or lack data")
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
    """A split with its labels, or without labels where its source has none. Raises InputError for wrong labels."""
    if unlabelled:
        return Split(name, open_source(data, name), None)
    try:
        source = open_labelled(data, name)
        return Split(name, source, tuple(source.classes))
    except InputError as error:
        source = open_source(data, name)  # raises where more than the labels is wrong
        if not isinstance(error, NoLabels):
            raise InputError(f"{error}; --unlabelled prepares the images without labels") from error
        logging.warning("%s is prepared without labels: %s", name, error)
        return Split(name, source, None)


def begin(output: Path, how: How, data: ConfigDict, splits: list[Split]) -> dict[str, Any]:
    """Writes records.json for a new directory, or extends it. Returns its content.

    Raises InputError where the directory was begun otherwise, or holds anything else.
    """
    wanted = {"encoding": how.encoding, "size": how.size, "source": data.source, "name": data.name}
    paths = [path if is_url(path) else os.path.abspath(expanded(path)) for path in paths_of(data.path)]
    wanted["path"] = paths if len(paths) > 1 else "".join(paths)
    wanted |= {key: getattr(how.reading, key) for key in READ}
    if (output / DESCRIPTION).exists():
        description = read_description(output)
        for key, value in wanted.items():
            # An earlier version wrote fewer keys, and before `dtype` all images were of 8 bits.
            check_same(output, key, description.get(key, PICTURE.dtype if key == "dtype" else value), value)
        description = wanted | description
    elif any(path.name != LOCK for path in output.iterdir()):
        raise InputError(f"output {str(output)!r} is there already: expected a new directory, or one to go on with")
    else:
        description = {**wanted, "splits": {}}
    for split in splits:
        classes = None if split.classes is None else list(split.classes)
        new = {"images": None, "left_out": None, "of": len(split.images), "shards": None, "classes": classes}
        new["listing"] = listing(split.images)
        found = description["splits"].setdefault(split.name, new)
        for key, name in (("of", "of"), ("classes", "classes"), ("listing", "digest of names and order")):
            # A directory of an earlier version has no listing.
            check_same(output, f"{split.name} {name}", found.setdefault(key, new[key]), new[key])
    write_description(output, description)
    return description


def check_same(output: Path, name: str, before: Any, now: Any) -> None:
    if before != now:
        raise InputError(f"output {str(output)!r} was begun with {name} {before!r}: expected that, not {now!r}")


def write_description(output: Path, description: dict[str, Any]) -> None:
    replace_text(output / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def convert(split: Split, output: Path, how: How, description: dict[str, Any], workers: int) -> str:
    """Writes the missing shards of a split, then records in records.json that the split is whole."""
    count = len(split.images)
    paths = [output / name for name in shard_names(output, split.name, -(-count // PER_SHARD))]
    rows = {path: range(i * PER_SHARD, min((i + 1) * PER_SHARD, count)) for i, path in enumerate(paths)}
    missing = [path for path in paths if not path.exists()]
    done, stop = count - sum(len(rows[path]) for path in missing), Event()
    with progress_bar(split.name, count, done) as advance, ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(write_shard, path, split, rows[path], how, advance, stop) for path in missing]
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


def write_shard(path: Path, split: Split, rows: range, how: How, advance: Callable[[int], None], stop: Event) -> None:
    """Writes some images of a split, in order: their labels first, so that a shard never lacks them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with replacing(path) as draft:
        writer, labels = ArrayRecordWriter(os.fspath(draft), WRITING), []
        try:
            for row in rows:
                if stop.is_set():
                    raise CancelledError
                try:
                    item = undecoded(split.images, row)
                    image, label = (item, -1) if split.classes is None else item
                    writer.write(to_record(image, how))
                    labels.append(label)
                    if how.reading.page == 0 and isinstance(image, Encoded) and has_more(image.data):
                        warn_once(f"some images of {path.parent} have several frames or pages: the first is taken")
                except (DecodeError, cv2.error) as error:
                    name, why = split.images.name_of(row), in_a_line(error)
                    logging.warning("%s; it is left out", why if name in why else f"{name}: {why}")
                advance(1)
        finally:
            writer.close()
        if split.classes is not None:
            with replacing(path.with_name(labels_path(path.name))) as labels_draft, labels_draft.open("wb") as file:
                np.save(file, np.array(labels, np.int32))


def to_record(image: Image, how: How) -> bytes:
    """An image as it is stored. A JPEG that is small enough keeps its bytes. Raises DecodeError."""
    pixels = shrunk(image, how.size, how.reading)
    if how.encoding == "raw":
        return to_raw(pixels)
    if isinstance(image, Encoded) and image.header is not None and min(image.header[:2]) <= how.size:
        return bytes(image.data)
    height, width, channels = pixels.shape
    if channels not in (1, 3) or max(height, width) > LONGEST_JPEG:
        wanted = f"1 or 3 channels and sides of {LONGEST_JPEG:,} pixels at most"
        raise DecodeError(f"it is {height} x {width} of {channels} channels: expected {wanted}, as JPEG takes")
    if channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()


def shrunk(image: Image, size: int, reading: Reading) -> Num[np.ndarray, "h w c"]:
    """The image with its shorter side at most `size`."""

    def whole(full: Size) -> tuple[Box, Size]:
        scale = min(1.0, size / min(full))
        return (0, 0, *full), (max(1, round(full[0] * scale)), max(1, round(full[1] * scale)))

    pixels, (height, width) = load(image, whole, reading)
    if size_of(pixels) == (height, width):
        return pixels
    if reading != PICTURE:
        return resize(pixels, (height, width), reading.no_data)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
