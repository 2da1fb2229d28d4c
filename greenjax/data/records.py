"""Images that `python -m greenjax.data.prepare` made: a directory of ArrayRecord shards, and a JSON that tells of them.

    records.json                                what was prepared, and how
    train-00000-of-00004.array_record           images in the source's order
    train-00000-of-00004.labels.npy             their labels, int32, where the source has them

A record is an encoded JPEG, or, in encoding raw, height, width and channels as three uint32 and then the pixels.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int32, UInt8
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Encoded, Image, decoded
from greenjax.errors import InputError, listed
from greenjax.runtime.files import expanded, read_json

ENCODINGS = ("raw", "jpeg")
DESCRIPTION = "records.json"
ANEW = "expected what `python -m greenjax.data.prepare` wrote; prepare the images anew in another folder"
HEADER = 12  # bytes before a raw image's pixels
REMEDY = "delete it, and the same `python -m greenjax.data.prepare` command makes it anew"


@dataclass(frozen=True)
class RecordsSource:
    """One split of a prepared directory."""

    shards: tuple[str, ...]
    counts: tuple[int, ...]
    encoding: str
    name: str

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return decoded(self.encoded(index))

    def encoded(self, index: int) -> Image:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        name = self.name_of(index)
        with naming_damage(name, index, self.shards, self.counts):
            record = self._records[index]
        return from_raw(record, name) if self.encoding == "raw" else Encoded(record, name)

    def name_of(self, index: int) -> str:
        return f"{self.name}[{index}]"

    @cached_property
    def _records(self) -> Any:
        """The files, opened when they are first read: workers open their own."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource  # only this source needs it

        return ArrayRecordDataSource([_Shard(path, 0, n, n) for path, n in zip(self.shards, self.counts) if n])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}


@dataclass
class _Shard:
    """What ArrayRecordDataSource wants to know beforehand, so that it does not open every file for its length."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def to_raw(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    return np.array(image.shape, "<u4").tobytes() + image.tobytes()


def from_raw(record: bytes, name: str) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a record, not copied and hence not to be written to. Raises DecodeError."""
    try:
        height, width, channels = np.frombuffer(record, "<u4", 3).tolist()
        if channels not in (1, 3):
            raise ValueError(f"{channels} channels")
        return np.frombuffer(record, np.uint8, offset=HEADER).reshape(height, width, channels)
    except ValueError as error:
        raise DecodeError(f"{name} is no raw image of {len(record)} bytes") from error


# Shards


@contextmanager
def naming_damage(name: str, index: int, shards: Sequence[str], counts: Sequence[int]) -> Iterator[None]:
    """Makes array_record's errors at reading image `index` one line with the shard's file and the record in it."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        ends = list(accumulate(counts))
        shard = bisect_right(ends, index)
        record = index - (ends[shard] - counts[shard])
        raise DecodeError(f"{name} cannot be read: record {record} of {shards[shard]}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What array_record says, without numbers of bytes and hashes."""
    text = " ".join(str(error).split())
    return text.partition(" (")[0].partition("; ")[0] or "its end is damaged"


def count_records(
    shards: Sequence[str], remedy: str, expected: Sequence[int] | None = None, threads: int = 16
) -> list[int]:
    """How many images each of these shards has. Only their ends are read.

    Raises InputError for one that cannot be read, or has not as many as expected; `remedy` says what to do then.
    """
    from array_record.python.array_record_module import ArrayRecordReader  # only this source needs it

    def count(shard: str) -> int | str:
        try:
            reader = ArrayRecordReader(shard, options="readahead_buffer_size:0,max_parallelism:0")
            try:
                return reader.num_records()
            finally:
                reader.close()
        except RuntimeError as error:
            return reason(error)

    with ThreadPoolExecutor(threads) as pool:  # of a network's file system, say, opening many takes a while
        counts = list(pool.map(count, shards))
    for shard, found, images in zip(shards, counts, expected or counts):
        if found != images or isinstance(found, str):
            of = "" if expected is None else f", of {images:,} images,"
            why = f"cannot be read: {found}" if isinstance(found, str) else f"has {found:,}"
            raise InputError(f"shard {shard!r}{of} {why}; {remedy}")
    return [int(found) for found in counts]


# Directories


def shard_paths(root: Path, split: str, count: int) -> list[Path]:
    """The files of a split, whose name may have slashes. Raises InputError where array_record cannot name them."""
    try:
        os.fspath(root).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{str(root)!r} is no UTF-8: expected a folder with another name, for prepared images"
        ) from error
    return [root / f"{quote(split, safe='')}-{i:05}-of-{count:05}.array_record" for i in range(count)]


def labels_path(shard: str | Path) -> Path:
    return Path(shard).with_suffix(".labels.npy")


def read_description(root: Path) -> dict[str, Any]:
    """What records.json says. Raises InputError where there is none, or a damaged one."""
    path = root / DESCRIPTION
    if not path.is_file():
        what = f"data.path is {str(root)!r}: expected a directory made by `python -m greenjax.data.prepare`"
        raise InputError(f"{what}, with a {DESCRIPTION} that can be read")
    found = read_json(path, dict, ANEW)
    if not isinstance(found.get("splits"), dict) or found.get("encoding") not in ENCODINGS:
        raise InputError(f"{str(path)!r} does not say what was prepared: {ANEW}")
    return found


def open_records(data: ConfigDict, name: str) -> RecordsSource:
    """A split of a prepared directory, without labels."""
    return _open(expanded(data.path), name)[0]


def open_labelled_records(
    data: ConfigDict, name: str
) -> tuple[RecordsSource, Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Images, their labels, and the names of the classes. Raises InputError where there are no labels."""
    root = expanded(data.path)
    source, split = _open(root, name)
    if split["classes"] is None:
        raise InputError(f"{str(root)!r} has no labels of split {name!r}: its source had none when it was prepared")
    labels = np.concatenate([_read_labels(labels_path(path)) for path in source.shards])
    if len(labels) != len(source):
        found = f"{len(labels)} labels of the {len(source)} images"
        raise InputError(f"{str(root)!r} has {found} of split {name!r}: prepare it anew")
    return source, labels, tuple(split["classes"])


def _open(root: Path, name: str) -> tuple[RecordsSource, dict[str, Any]]:
    description = read_description(root)
    splits = description["splits"]
    if name not in splits:
        raise InputError(f"{str(root)!r} has no split {name!r}: available are {listed(splits)}")
    split = splits[name]
    if split["shards"] is None:
        remedy = "the command that began it goes on with it"
        raise InputError(f"split {name!r} of {str(root)!r} is not yet prepared to its end: {remedy}")
    paths = shard_paths(root, name, len(split["shards"]))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{str(root)!r} lacks {listed(missing)}")
    shards, counts = tuple(map(os.fspath, paths)), tuple(split["shards"])
    count_records(shards, REMEDY, counts)
    return RecordsSource(shards, counts, description["encoding"], f"{root} {name}"), split


def _read_labels(path: Path) -> Int32[np.ndarray, " n"]:
    try:
        return np.load(path)
    except (OSError, ValueError) as error:
        raise InputError(f"labels {str(path)!r} cannot be read: {error}") from error
