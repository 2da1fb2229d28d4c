"""Scenes of digits, for detection: made when they are read, without a download."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, UInt8
from ml_collections import ConfigDict

from greenjax.data.detection import run_lengths
from greenjax.data.detection.annotations import Objects
from greenjax.data.encoded import Size
from greenjax.data.sources.arrays import ArraySource
from greenjax.data.sources.base import check_no_path
from greenjax.data.sources.digits import DigitsSource
from greenjax.data.sources.objects import ObjectSource
from greenjax.errors import InputError, listed
from greenjax.runtime.classes import Classes

SEEDS = {"train": 1, "test": 2}  # of the scenes of a split
SCENES = 100_000  # of a split
SIDE = 128  # pixels of a scene
DIGITS = 6  # of a scene, at most


@dataclass(frozen=True, eq=False)
class ScenesSource(ObjectSource):
    """SCENES scenes of the training digits ("train"), or of the held-out ones ("test"), the same in every run."""

    place = ()

    digits: ArraySource
    seed: int

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        check_no_path(values, "coco")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "ScenesSource":
        if split not in SEEDS:
            raise InputError(f"data.source 'scenes' has no split {split!r}: expected one of {listed(SEEDS)}")
        return cls(DigitsSource.open(data, split), SEEDS[split])

    def __len__(self) -> int:
        return SCENES

    @property
    def classes(self) -> Classes:
        return tuple("0123456789")

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(range(1, 11))

    def annotated(self, index: int) -> tuple[UInt8[np.ndarray, "h w 1"], Objects]:
        from greenjax.data.detection.scenes import scene  # loads OpenCV, which settings of sources do without

        return scene(self.digits.images, self.digits.labels, SIDE, DIGITS, self.seed, index)

    def encoded(self, index: int) -> UInt8[np.ndarray, "h w 1"]:
        return self.annotated(index)[0]

    def name_of(self, index: int) -> str:
        return str(index)

    def counts(self) -> Int64[np.ndarray, " n"]:
        return np.full(SCENES, DIGITS)

    def size(self, index: int) -> Size:
        return SIDE, SIDE

    def image_id(self, index: int) -> int:
        return index

    def ground_truth(self, index: int) -> list[dict[str, Any]]:
        _, (_, boxes, labels, masks) = self.annotated(index)
        found = []
        for number, (box, label, mask) in enumerate(zip(boxes, labels, masks)):
            where = {"id": 1 + index * DIGITS + number, "image_id": index, "category_id": int(label)}
            what = {"bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()], "area": int(mask.sum()), "iscrowd": 0}
            found.append(where | what | {"segmentation": run_lengths.encoded(mask)})
        return found

    def parts(self) -> Iterator[bytes]:
        yield repr(self.seed).encode()
        yield from self.digits.parts()

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        return len(np.intersect1d(rows, others)) if self.seed == other.seed else 0
