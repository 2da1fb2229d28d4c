"""Many texts in two arrays: names of images, which the data workers of a run share.

"b/1.png", "a/2.png"   ->   text: b"b/1.png\0a/2.png", ends: [7, 15]
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Int64, UInt8

from greenjax.errors import InputError


@dataclass(frozen=True, eq=False)
class Names(Sequence[str]):
    """Texts that are joined by NUL, as a file system stores them, and the place after the last byte of each."""

    text: UInt8[np.ndarray, " bytes"]
    ends: Int64[np.ndarray, " n"]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Raises InputError for a name with a NUL, which no file has."""
        stored = list(map(os.fsencode, names))
        joined = b"\0".join(stored)
        if joined.count(b"\0") >= max(len(stored), 1):
            wrong = next(name for name in stored if b"\0" in name)
            raise InputError(f"name {os.fsdecode(wrong)!r} has a NUL: expected a name that a file can have")
        ends = np.cumsum(np.fromiter(map(len, stored), np.int64, len(stored)) + 1) - 1
        return cls(np.frombuffer(joined, np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return iter(os.fsdecode(self.text.tobytes()).split("\0") if len(self) else ())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and len(self) == len(other) and np.array_equal(self.text, other.text)

    __hash__ = None  # type: ignore[assignment]


def by_hash(name: str) -> bytes:
    """The place of an image in the order of a source: slices of that order have images of all classes."""
    return blake2b(os.fsencode(name), digest_size=8).digest()


def hashed_order(names: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The indices of names, sorted by their hashes; equal hashes stay in order."""
    return np.frombuffer(b"".join(map(by_hash, names)), ">u8").argsort(kind="stable")
