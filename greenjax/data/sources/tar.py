"""Images in tar files, as WebDataset names them: files of one sample have one name and several suffixes.

    0001.jpg  0001.cls        an image, and its class as text
    0002.png  0002.json       an image, and {"label": its class}

The name of a sample ends at its first dot: 0002.mask.png is no image.
An index of each tar file is made once, beside it or in the user's cache folder, so that any image is read by itself:
the order of images, resumes and processes are those of every other source. Of a tar file at a URL one request fetches
one image; its index is in the cache folder.
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from absl import logging
from jaxtyping import Int, Int64
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Encoded
from greenjax.data.labels import Listed, by_name
from greenjax.data.remote import PART, Remote, Seekable, Stat, is_url, refusing
from greenjax.data.sources.base import Source
from greenjax.data.sources.image_files import SUFFIXES
from greenjax.data.sources.patterns import files_of
from greenjax.errors import InputError, NoLabels, listed, refuse
from greenjax.runtime.cache import cache_folder
from greenjax.runtime.files import replacing

THREADS = 16  # that read tar files
INDEX = ".index.npz"  # what the name of an index ends with
LABELLED = (".cls", ".json")  # suffixes of files with the class of a sample
LABELS = ("label", "class", "cls")  # what may hold the class in a JSON file of a sample
SMALL = 1 << 20  # bytes of files whose label is read before it is known whether their sample has an image
Files = Mapping[str, tarfile.TarInfo]  # of a sample, by suffix


class Index(NamedTuple):
    """The samples of a tar file that have an image."""

    start: Int64[np.ndarray, " n"]  # the first byte of each image
    size: Int64[np.ndarray, " n"]  # in bytes
    names: np.ndarray  # bytes: the names of the images in the tar file
    labels: np.ndarray  # bytes: the names of their classes; empty where a sample has none
    dotted: np.ndarray  # bytes: the names of files such as a.1.png in samples without an image
    without: int  # samples without either


@dataclass(frozen=True, eq=False)
class TarSource(Source):
    """The images of the tar files that data.path names, file by file, each in the order of its samples.

    data.path is a pattern (patterns.py).
    """

    shards: tuple[str, ...]
    ends: Int64[np.ndarray, " shards"]  # the number of images up to the end of each file
    index: Index
    remote: Remote | None = None  # where the files have URLs
    versions: tuple[str, ...] = ()  # of each of them

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        if not values["data.path"]:
            refuse(values, "data.path", "tar files such as /data/{split}-{000..099}.tar, for data.source 'tar'")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "TarSource":
        remote = Remote.of(data, [data.path]) if is_url(data.path) else None
        shards, versions = files_of(data.path, split, "tar files", remote), ()
        with ThreadPoolExecutor(THREADS) as pool, refusing():
            if remote is None:
                found = list(pool.map(index_of, shards))
            else:
                stats = list(pool.map(remote.stat, shards))
                found = list(pool.map(partial(index_at_url, remote), shards, stats))
                versions = tuple(stat.version for stat in stats)
        *columns, counts = zip(*found)
        start, size, names, labels, dotted = map(np.concatenate, columns)
        why = "the name of a sample ends at its first dot"
        dots = [f"{len(dotted):,} images are left out, {os.fsdecode(name)!r} first: {why}" for name in dotted[:1]]
        if not len(start):
            expected = "; ".join([f"expected samples with one of *{', *'.join(SUFFIXES)}", *dots])
            raise InputError(f"{data.path!r} has no images: {expected}")
        for line in dots:
            logging.warning("%s: %s", data.path, line)
        if without := sum(counts):
            logging.warning("%s: %s samples have no image and are left out", data.path, f"{without:,}")
        ends = np.cumsum([len(index.start) for index in found])
        return cls(tuple(shards), ends, Index(start, size, names, labels, dotted, without), remote, versions)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def encoded(self, index: int) -> Encoded:
        shard, start, size = self.shard_of(index), int(self.index.start[index]), int(self.index.size[index])
        name = self.name_of(index)
        if self.remote is not None:
            version = self.versions[int(np.searchsorted(self.ends, index, side="right"))]
            return Encoded(self.remote.read(shard, start, size, version), name)
        try:
            with open(shard, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, start)
        except OSError as error:
            raise DecodeError(f"{name} cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise DecodeError(f"{name} cannot be read: the tar file is cut short")
        return Encoded(data, name)

    def name_of(self, index: int) -> str:
        return f"{self.shard_of(index)} {os.fsdecode(self.index.names[index])}"

    def shard_of(self, index: int) -> str:
        return self.shards[int(np.searchsorted(self.ends, index, side="right"))]

    def labelled(self, training: bool) -> Listed:
        missing = np.flatnonzero(self.index.labels == b"")
        if len(missing):
            first, kind = self.name_of(int(missing[0])), InputError if len(missing) < len(self) else NoLabels
            what = f"{len(missing):,} of the {len(self):,} images have no label, {first!r} first"
            raise kind(f"{what}: expected a file .cls beside each, or .json with one of {listed(LABELS)}")
        return by_name(self, [label.decode() for label in self.index.labels.tolist()])

    def parts(self) -> Iterator[bytes]:
        yield repr([os.path.basename(shard) for shard in self.shards]).encode()
        yield b"\0".join((*self.index.names.tolist(), *self.index.labels.tolist()))

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        """Compares the names of tar files and samples."""
        return len({self.name_of(int(row)) for row in rows} & {other.name_of(int(row)) for row in others})


# The index of a tar file


def index_of(shard: str) -> Index:
    """The index of a tar file: kept beside it, kept in the cache folder, or made now. Raises InputError for damage."""
    try:
        stat = os.stat(shard)
    except OSError as error:
        raise InputError(f"{shard!r} cannot be read: {error.strerror}") from error
    stamp = np.array([stat.st_size, stat.st_mtime_ns])
    return kept_index(index_paths(shard), stamp, lambda: make_index(shard))


def index_at_url(remote: Remote, url: str, stat: Stat) -> Index:
    """As `index_of`; made from requests for all of the tar file, one after the other."""
    stamp = np.array([stat.size, int.from_bytes(blake2b(stat.version.encode(), digest_size=7).digest())])
    file = BufferedReader(Seekable(remote, url, stat.size), PART)
    return kept_index(index_paths(url), stamp, lambda: make_index(url, file))


def kept_index(places: list[Path], stamp: np.ndarray, make: Callable[[], Index]) -> Index:
    """The index in one of the places, or a new one, kept in the first of them that can be written."""
    for path in places:
        if (kept := read_index(path, stamp)) is not None:
            return kept
    index = make()
    for path in places:
        with suppress(OSError), replacing(path, f".{os.getpid()}") as draft:  # the first folder that can be written
            with draft.open("wb") as file:
                np.savez(file, stamp=stamp, **index._asdict())
            break
    return index


def index_paths(shard: str) -> list[Path]:
    """Where an index may be kept: beside the tar file, else in the user's cache folder."""
    places = [] if is_url(shard) else [Path(f"{shard}{INDEX}")]
    with suppress(FileNotFoundError):  # a user without a home
        place = shard if is_url(shard) else os.path.abspath(shard)
        name = blake2b(os.fsencode(place), digest_size=16).hexdigest()
        places.append(cache_folder() / "tar" / f"{name}{INDEX}")
    return places


def read_index(path: Path, stamp: np.ndarray) -> Index | None:
    """A kept index; None where there is none, where it is damaged, or where the tar file has changed since."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            if np.array_equal(kept["stamp"], stamp):
                *columns, without = (kept[name] for name in Index._fields)
                return Index(*columns, without=int(without))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, RuntimeError):  # what damage of an .npz may raise
        pass
    return None


def make_index(shard: str, file: Any = None) -> Index:
    """Reads the headers and labels of a tar file, in order; opened as `file` where it is at a URL."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    labels: dict[int, str | None] = {}
    try:
        with tarfile.open(shard, "r:", file) as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                key, dot, suffix = base.partition(".")
                if member.isfile() and key:
                    suffix = f"{dot}{suffix.lower()}"
                    samples.setdefault(f"{folder}/{key}", {})[suffix] = member
                    if suffix in LABELLED and member.size <= SMALL:
                        labels[member.offset] = label_in(tar, member)
            rows = [row_of(tar, shard, files, labels) for files in samples.values()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{shard!r} is no whole tar file: {error}") from error
    found = [row for row in rows if row is not None]
    others = [dotted_images(files) for files, row in zip(samples.values(), rows) if row is None]
    start, size, *named = zip(*found) if found else ((), (), (), ())
    columns = [np.array(list(map(os.fsencode, column)), bytes) for column in (*named, chain.from_iterable(others))]
    return Index(np.array(start, np.int64), np.array(size, np.int64), *columns, without=others.count([]))


def row_of(
    tar: tarfile.TarFile, shard: str, files: Files, labels: Mapping[int, str | None]
) -> tuple[int, int, str, str] | None:
    """First byte, size, name and label ("" for none) of the image of a sample; None for a sample without an image.

    `labels`: of files that are read already, by where they begin.
    """
    image = next((member for suffix, member in files.items() if suffix in SUFFIXES), None)
    if image is None:
        return None
    label, file = "", files.get(".cls", files.get(".json"))
    if file is not None:
        label = labels[file.offset] if file.offset in labels else label_in(tar, file)
        if label is None:
            raise InputError(f"{shard!r}: {file.name} holds no class: expected text, or a JSON object")
    return image.offset_data, image.size, image.name, label


def dotted_images(files: Files) -> list[str]:
    """The files of a sample that end as images do: "a 10.30.png" is file .30.png of sample "a 10"."""
    return [member.name for suffix, member in files.items() if suffix.endswith(SUFFIXES)]


def label_in(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """The class that a .cls or .json file names; "" for none, and None for a damaged file."""
    file: Any = tar.extractfile(member)
    try:
        if member.name.lower().endswith(".cls"):
            return file.read().decode("utf-8-sig").strip()  # as json.loads, without a byte order mark
        found = json.load(file)
    except ValueError:
        return None
    values = [found[key] for key in LABELS if found.get(key) is not None] if isinstance(found, dict) else []
    return str(values[0]) if values else ""
