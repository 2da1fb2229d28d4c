"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, which need no download."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8
from ml_collections import ConfigDict

from greenjax.data.labels import Listed
from greenjax.data.listing import parts_of
from greenjax.data.sources.base import Source
from greenjax.errors import InputError, listed, refuse

SPLITS = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}


@dataclass(frozen=True, eq=False)
class DigitsSource(Source):
    """The first 1,500 digits ("train"), the others ("test"), or all of them ("all")."""

    place = ()

    images: UInt8[np.ndarray, "n 8 8 1"]
    digits: Int32[np.ndarray, " n"]

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        if values["data.path"]:
            others = "--config.data.source=folder, huggingface, list, records, tar or tfds takes one"
            refuse(values, "data.path", f"'' for data.source 'digits', which reads no path; {others}")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "DigitsSource":
        from sklearn.datasets import load_digits  # only this source needs scikit-learn

        if split not in SPLITS:
            raise InputError(f"digits have no split {split!r}: expected one of {listed(SPLITS)}")
        pixels, digits = (array[SPLITS[split]] for array in load_digits(return_X_y=True))  # pixels are 0 to 16
        images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        return cls(images, digits.astype(np.int32))

    def __len__(self) -> int:
        return len(self.images)

    def encoded(self, index: int) -> UInt8[np.ndarray, "8 8 1"]:
        return self.images[index]

    def name_of(self, index: int) -> str:
        return str(index)

    def labelled(self, training: bool) -> Listed:
        return Listed(self, self.digits, tuple("0123456789"))

    def parts(self) -> Iterator[bytes]:
        return parts_of(self.images)

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        """Compares pixels: no two digits are alike."""
        return len({self.images[row].tobytes() for row in rows} & {other.images[row].tobytes() for row in others})
