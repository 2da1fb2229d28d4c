"""Sources whose images have objects: boxes, classes and masks."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int32, Int64, Integer

from greenjax.data.detection.annotations import Objects
from greenjax.data.encoded import Image, Size, Undecoded
from greenjax.data.labels import numbers_of
from greenjax.data.sources.base import Source
from greenjax.errors import InputError, NoLabels
from greenjax.runtime.classes import Classes


class ObjectSource(Source):
    """One split of a data set whose images have objects."""

    @property
    @abstractmethod
    def classes(self) -> Classes:
        """Names of the classes: label i is classes[i - 1]."""

    @property
    @abstractmethod
    def category_ids(self) -> tuple[int, ...]:
        """The numbers of the classes in COCO's JSON."""

    @abstractmethod
    def annotated(self, index: int) -> tuple[Image, Objects]:
        """Image `index` as it is stored, and its objects. Raises DecodeError as `encoded`."""

    @abstractmethod
    def counts(self) -> Int64[np.ndarray, " n"]:
        """Objects of every image, at most; 0 for an image without any."""

    @abstractmethod
    def size(self, index: int) -> Size:
        """(height, width) of the stored image, in pixels."""

    @abstractmethod
    def image_id(self, index: int) -> int:
        """The number of the image in COCO's JSON."""

    @abstractmethod
    def ground_truth(self, index: int) -> list[dict[str, Any]]:
        """The annotations of the image as COCO has them, with compressed run lengths."""

    def labelled(self, training: bool) -> NoReturn:
        raise NoLabels("data.source has images of many objects: expected one of images with one label each")


@dataclass(frozen=True, eq=False)
class WithObjects(Undecoded):
    """Some images of a source, each with its objects, under the classes of a model."""

    source: ObjectSource
    rows: Integer[np.ndarray, " n"]
    classes: Classes
    numbers: Int32[np.ndarray, " labels"]  # by the source's label: the label here

    @classmethod
    def of(cls, source: ObjectSource, rows: Integer[np.ndarray, " n"], classes: Classes, where: str) -> "WithObjects":
        """Classes are the same where their names are. Raises InputError for a class that the model does not have."""
        found = numbers_of(source.classes, classes, where, "")
        if min(found) < 0:
            unknown = source.classes[found.index(-1)]
            raise InputError(f"{where} has class {unknown!r}: expected the classes of the model, {', '.join(classes)}")
        return cls(source, rows, classes, np.array([0, *(1 + number for number in found)], np.int32))

    def __len__(self) -> int:
        return len(self.rows)

    def encoded(self, index: int) -> tuple[Image, Objects]:
        image, found = self.source.annotated(int(self.rows[index]))
        return image, found._replace(labels=self.numbers[found.labels])

    def name_of(self, index: int) -> str:
        return self.source.name_of(int(self.rows[index]))

    def size(self, index: int) -> Size:
        return self.source.size(int(self.rows[index]))

    def image_id(self, index: int) -> int:
        return self.source.image_id(int(self.rows[index]))

    def ground_truth(self, index: int) -> list[dict[str, Any]]:
        return self.source.ground_truth(int(self.rows[index]))

    @property
    def categories(self) -> list[dict[str, Any]]:
        """The categories of COCO's JSON."""
        return [{"id": number, "name": name} for number, name in zip(self.source.category_ids, self.source.classes)]

    def category_id(self, label: int) -> int | None:
        """The category of a label in COCO's JSON; None for a class that the source does not have."""
        number = np.flatnonzero(self.numbers[1:] == label)
        return self.source.category_ids[int(number[0])] if len(number) else None
