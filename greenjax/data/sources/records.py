"""Images that `python -m greenjax.data.prepare` wrote: a directory of ArrayRecord files, and a JSON file about them.

    records.json                                the splits, and how they were prepared
    train-00000-of-00004.array_record           images in the source's order
    train-00000-of-00004.labels.npy             their labels, int32, where the source has labels

A record is an encoded JPEG, or, in encoding raw, height, width and channels as three uint32, followed by the pixels.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int32, Num
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Encoded, Image
from greenjax.data.labels import Listed
from greenjax.data.remote import Remote, Stat, is_url, joined, refusing
from greenjax.data.sources.array_record import THREADS, CopiedRecords, Shard, count_records, naming_damage
from greenjax.data.sources.base import Source
from greenjax.errors import InputError, NoLabels, listed, refuse
from greenjax.runtime.files import expanded, parse_json, read_json

ENCODINGS = ("raw", "jpeg")
DESCRIPTION = "records.json"
HEADER = 12  # bytes before the pixels of a raw image
ANEW = "expected what `python -m greenjax.data.prepare` wrote; prepare the images anew in another folder"
REMEDY = "delete it, and the same `python -m greenjax.data.prepare` command makes it anew"


@dataclass(frozen=True)
class RecordsSource(Source):
    """One split of a prepared directory."""

    root: str
    split: str
    encoding: str
    shards: tuple[str, ...]
    counts: tuple[int, ...]  # images in each shard
    classes: tuple[str, ...] | None = None
    dtype: str = "uint8"  # of raw pixels
    remote: Remote | None = None  # where the directory is at a URL
    stats: tuple[Stat, ...] = ()  # of each shard there

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        if not values["data.path"]:
            refuse(values, "data.path", "a directory that greenjax.data.prepare made, for data.source 'records'")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "RecordsSource":
        remote = Remote.of(data, [data.path]) if is_url(data.path) else None
        root = expanded(data.path) if remote is None else data.path.rstrip("/")
        description = read_description(root, remote)
        if split not in description["splits"]:
            raise InputError(f"{str(root)!r} has no split {split!r}: available are {listed(description['splits'])}")
        found = description["splits"][split]
        if found["shards"] is None:
            remedy = "the command that began it goes on with it"
            raise InputError(f"split {split!r} of {str(root)!r} is not yet prepared to its end: {remedy}")
        counts = tuple(found["shards"])
        shards, stats = tuple(joined(str(root), name) for name in shard_names(root, split, len(counts))), ()
        if remote is None:
            missing = [os.path.basename(path) for path in shards if not os.path.isfile(path)]
            if missing:
                raise InputError(f"{str(root)!r} lacks {listed(missing)}")
            count_records(shards, REMEDY, counts)
        else:
            stats = stats_of(shards, remote)
        classes = None if found["classes"] is None else tuple(found["classes"])
        dtype = description.get("dtype", "uint8")  # directories of earlier versions have none
        return cls(str(root), split, description["encoding"], shards, counts, classes, dtype, remote, stats)

    def __len__(self) -> int:
        return sum(self.counts)

    def encoded(self, index: int) -> Image:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        name = self.name_of(index)
        with naming_damage(name, index, self.shards, self.counts):
            record = self._records[index]
        return from_raw(record, name, self.dtype) if self.encoding == "raw" else Encoded(record, name)

    def name_of(self, index: int) -> str:
        return f"{self.root} {self.split}[{index}]"

    def labelled(self, training: bool) -> Listed:
        if self.classes is None:
            why = "its source had none when it was prepared, or --unlabelled left them out"
            raise NoLabels(f"{self.root!r} has no labels of split {self.split!r}: {why}")
        labels = np.concatenate([read_labels(labels_path(path), self.remote) for path in self.shards])
        if len(labels) != len(self):
            found = f"{len(labels)} labels of the {len(self)} images"
            raise InputError(f"{self.root!r} has {found} of split {self.split!r}: prepare it anew")
        return Listed(self, labels, self.classes)

    def parts(self) -> Iterator[bytes]:
        yield repr((self.encoding, self.counts, [os.path.basename(path) for path in self.shards])).encode()

    @cached_property
    def _records(self) -> Any:
        """The files, opened at the first read: each worker opens its own."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource  # only this source needs it

        remote = self.remote
        if remote is not None:
            return CopiedRecords(self.counts, lambda shard: remote.copy(self.shards[shard], self.stats[shard]))
        return ArrayRecordDataSource([Shard(path, 0, n, n) for path, n in zip(self.shards, self.counts) if n])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}


def to_raw(image: Num[np.ndarray, "h w c"]) -> bytes:
    return np.array(image.shape, "<u4").tobytes() + image.tobytes()


def from_raw(record: bytes, name: str, dtype: str = "uint8") -> Num[np.ndarray, "h w c"]:
    """The pixels of a record, without a copy, hence read-only. Raises DecodeError."""
    try:
        height, width, channels = np.frombuffer(record, "<u4", 3).tolist()
        return np.frombuffer(record, dtype, offset=HEADER).reshape(height, width, channels)
    except ValueError as error:
        raise DecodeError(f"{name} is no raw image of {len(record)} bytes") from error


# The directory


def read_description(root: str | Path, remote: Remote | None = None) -> dict[str, Any]:
    """The content of records.json. Raises InputError where it is missing or damaged."""
    path = joined(str(root), DESCRIPTION)
    if remote is not None:
        with refusing():
            found = parse_json(path, remote.fetch(path), dict, ANEW)
    elif not os.path.isfile(path):
        what = f"data.path is {str(root)!r}: expected a directory made by `python -m greenjax.data.prepare`"
        raise InputError(f"{what}, with a {DESCRIPTION} that can be read")
    else:
        found = read_json(Path(path), dict, ANEW)
    if not isinstance(found.get("splits"), dict) or found.get("encoding") not in ENCODINGS:
        raise InputError(f"{path!r} does not say what was prepared: {ANEW}")
    return found


def shard_names(root: str | Path, split: str, count: int) -> list[str]:
    """The files of a split, whose name may have slashes. Raises InputError where array_record cannot name them."""
    try:
        os.fspath(root).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{str(root)!r} is no UTF-8: expected a folder with another name, for prepared images"
        ) from error
    return [f"{quote(split, safe='')}-{i:05}-of-{count:05}.array_record" for i in range(count)]


def stats_of(shards: Sequence[str], remote: Remote) -> tuple[Stat, ...]:
    """Sizes and versions of files at URLs. Raises InputError where one is missing, or all are too large to be kept."""
    with ThreadPoolExecutor(THREADS) as pool, refusing():
        found = tuple(pool.map(remote.stat, shards))
    limit, size = 0 if remote.store is None else remote.store.limit, sum(stat.size for stat in found)
    if size > limit:
        what = f"data.cache_gb is {limit / 1e9:g}: expected at least {size / 1e9:.3g}, as records are read from copies"
        raise InputError(f"{what}: {os.path.dirname(shards[0])!r} has {size / 1e9:.3g} GB of this split")
    return found


def labels_path(shard: str) -> str:
    return f"{shard.removesuffix('.array_record')}.labels.npy"


def read_labels(path: str, remote: Remote | None = None) -> Int32[np.ndarray, " n"]:
    with refusing():
        content = None if remote is None else BytesIO(remote.fetch(path))
    try:
        return np.load(path if content is None else content)
    except (OSError, ValueError) as error:
        raise InputError(f"labels {path!r} cannot be read: {error}") from error
