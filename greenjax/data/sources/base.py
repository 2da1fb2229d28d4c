"""What every source provides."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from greenjax.data.encoded import Image, Undecoded
from greenjax.data.labels import LabelledSource
from greenjax.errors import refuse

Paths = str | tuple[str, ...]  # data.path: one, or several


def paths_of(path: Paths) -> tuple[str, ...]:
    """All that data.path names; none for ""."""
    return path if isinstance(path, tuple) else (path,) if path else ()


def check_no_path(values: Mapping[str, Any], others: str) -> None:
    """Raises InputError where flat settings have a path; `others` are the sources that read one."""
    if values["data.path"]:
        others = f"--config.data.source={others} takes one"
        refuse(values, "data.path", f"'' for data.source {values['data.source']!r}, which reads no path; {others}")


class Source(Undecoded, ABC):
    """One split of a data set: images by index, RGB or grey, as they are stored. Picklable, for data workers."""

    place: ClassVar[tuple[str, ...]] = ("data.path",)  # the settings that locate the data set, the most specific last

    @staticmethod
    @abstractmethod
    def check(values: Mapping[str, Any]) -> None:
        """Raises InputError where flat settings do not locate a data set of this kind."""

    @classmethod
    @abstractmethod
    def open(cls, data: ConfigDict, split: str) -> "Source":
        """The split named `split` of the data set that `config.data` locates.

        Raises InputError where the data set, the split or any image in it is missing.
        """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encoded(self, index: int) -> Image:
        """Image `index` as it is stored. Raises DecodeError where it cannot be read."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """The name by which a person finds image `index`: a file's path, or its place in the data set."""

    @abstractmethod
    def labelled(self, training: bool) -> LabelledSource:
        """The images with their labels. Raises NoLabels where there are none, InputError where some are missing.

        `training`: this is the training split, in which every class must have an image if that is known at once.
        """

    @abstractmethod
    def parts(self) -> Iterable[bytes]:
        """The names of all images in order, or what stands for them; without the folder that holds the data set.

        Two splits with equal parts have the same images in the same order.
        """

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        """How many of the images `rows` of this split are among the images `others` of `other`, of the same class."""
        return len(np.intersect1d(rows, others)) if self == other else 0
