"""Small data sets in memory: all images of one size in an array, beside an array of labels."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, Int32, UInt8
from ml_collections import ConfigDict

from greenjax.data.labels import Listed
from greenjax.data.listing import parts_of
from greenjax.data.sources.base import Source, check_no_path
from greenjax.errors import InputError, listed


@dataclass(frozen=True, eq=False)
class ArraySource(Source):
    """One split of handwritten digits that a package brings; no two images are alike."""

    place = ()
    training: ClassVar[int]  # how many of all images are the split "train"; the others are "test", and "all" has both

    images: UInt8[np.ndarray, "n h w 1"]
    labels: Int32[np.ndarray, " n"]

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        check_no_path(values, "folder, huggingface, list, records, tar or tfds")

    @staticmethod
    @abstractmethod
    def whole() -> tuple[UInt8[np.ndarray, "n h w 1"], Int32[np.ndarray, " n"]]:
        """All images and labels. Raises InputError where the package that brings them is missing."""

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "ArraySource":
        splits = {"train": slice(cls.training), "test": slice(cls.training, None), "all": slice(None)}
        if split not in splits:
            raise InputError(f"data.source {data.source!r} has no split {split!r}: expected one of {listed(splits)}")
        images, labels = (array[splits[split]] for array in cls.whole())
        return cls(images, labels)

    def __len__(self) -> int:
        return len(self.images)

    def encoded(self, index: int) -> UInt8[np.ndarray, "h w 1"]:
        return self.images[index]

    def name_of(self, index: int) -> str:
        return str(index)

    def labelled(self, training: bool) -> Listed:
        return Listed(self, self.labels, tuple("0123456789"))

    def parts(self) -> Iterator[bytes]:
        return parts_of(self.images)

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        """Compares pixels: no two images are alike."""
        return len({self.images[row].tobytes() for row in rows} & {other.images[row].tobytes() for row in others})
