"""ArrayRecord files, shared by sources of prepared records and of TFDS: their lengths, and their errors in one line."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from greenjax.data.encoded import DecodeError
from greenjax.errors import InputError, RunError

THREADS = 16  # that open files


@contextmanager
def naming_damage(name: str, index: int, shards: Sequence[str], counts: Sequence[int]) -> Iterator[None]:
    """Turns array_record's errors while it reads image `index` into a DecodeError that names the file and the record.

    `counts` are the records of each of the files `shards`.
    """
    try:
        yield
    except (InputError, RunError):  # of a server that is gone, or of a disk that is full, while the file is copied
        raise
    except (RuntimeError, ValueError) as error:
        ends = list(accumulate(counts))
        shard = bisect_right(ends, index)
        record = index - (ends[shard] - counts[shard])
        raise DecodeError(f"{name} cannot be read: record {record} of {shards[shard]}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The message of array_record, without numbers of bytes and hashes."""
    text = " ".join(str(error).split())
    return text.partition(" (")[0].partition("; ")[0] or "its end is damaged"


@dataclass
class Shard:
    """A file and its length, so that ArrayRecordDataSource need not open every file to count its records."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class CopiedRecords:
    """The records of several files at URLs: a file is copied when one of its records is first read."""

    def __init__(self, counts: Sequence[int], copy: Callable[[int], Path]):
        """`counts` are the records of each file; `copy` gives the local copy of file i."""
        self._ends, self._counts, self._copy = list(accumulate(counts)), counts, copy
        self._opened: dict[int, Any] = {}

    def __getitem__(self, index: int) -> bytes:
        from array_record.python.array_record_data_source import ArrayRecordDataSource  # only these sources need it

        number = bisect_right(self._ends, index)
        count = self._counts[number]
        if number not in self._opened:  # of two threads that open one file, one reader is kept
            self._opened[number] = ArrayRecordDataSource([Shard(os.fspath(self._copy(number)), 0, count, count)])
        return self._opened[number][index - (self._ends[number] - count)]


def count_records(shards: Sequence[str], remedy: str, expected: Sequence[int] | None = None) -> list[int]:
    """The number of records in each file. Only the ends of files are read.

    Raises InputError, with `remedy`, for a file that cannot be read or has another number of records than expected.
    """
    with ThreadPoolExecutor(THREADS) as pool:  # a network file system takes a while to open many files
        counts = list(pool.map(count_or_reason, shards))
    for shard, found, images in zip(shards, counts, expected or counts):
        if found != images or isinstance(found, str):
            of = "" if expected is None else f", of {images:,} images,"
            why = f"cannot be read: {found}" if isinstance(found, str) else f"has {found:,}"
            raise InputError(f"shard {shard!r}{of} {why}; {remedy}")
    return [int(found) for found in counts]


def count_or_reason(shard: str) -> int | str:
    """The number of records in a file, or why it cannot be read."""
    from array_record.python.array_record_module import ArrayRecordReader  # only sources of ArrayRecord need it

    try:
        with closing(ArrayRecordReader(shard, options="readahead_buffer_size:0,max_parallelism:0")) as reader:
            return reader.num_records()
    except RuntimeError as error:
        return reason(error)
