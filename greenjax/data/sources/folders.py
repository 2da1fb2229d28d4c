"""Image files below several directories, as one set of images; class folders of one name are one class."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
from jaxtyping import Int, Int64
from ml_collections import ConfigDict

from greenjax.data.encoded import Encoded
from greenjax.data.labels import Listed
from greenjax.data.remote import is_url
from greenjax.data.sources.base import Paths, Source
from greenjax.data.sources.folder import FolderSource, nested, paths_at, split_folder
from greenjax.data.sources.names import hashed_order
from greenjax.errors import InputError, NoLabels
from greenjax.runtime.classes import Classes, plain


@dataclass(frozen=True, eq=False)
class FoldersSource(Source):
    """The images of the split of each directory, sorted together by the hash of their names, as in one directory.

    Images of one name in two directories are two images, in the order of the directories.
    """

    folders: tuple[FolderSource, ...]
    order: Int64[np.ndarray, " n"]  # of the images of all folders, counted from the first image of the first folder
    ends: Int64[np.ndarray, " folders"]  # the number of images up to the end of each folder

    check = FolderSource.check

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "FoldersSource":
        settings = [ConfigDict(dict(data.items()) | {"path": path}) for path in data.path]
        refuse_shared(data.path, [split_folder(each, split, "has") for each in settings])
        folders = tuple(FolderSource.open(each, split) for each in settings)
        order = hashed_order(list(chain.from_iterable(folder.names for folder in folders)))
        return cls(folders, order, np.cumsum([len(folder) for folder in folders]))

    def __len__(self) -> int:
        return len(self.order)

    def located(self, index: int) -> tuple[FolderSource, int]:
        """The folder of an image, and its number there."""
        number = int(self.order[index])
        folder = int(np.searchsorted(self.ends, number, side="right"))
        return self.folders[folder], number - int(self.ends[folder]) + len(self.folders[folder])

    def encoded(self, index: int) -> Encoded:
        folder, row = self.located(index)
        return folder.encoded(row)

    def name_of(self, index: int) -> str:
        folder, row = self.located(index)
        return folder.name_of(row)

    def labelled(self, training: bool) -> Listed:
        """Each image with the class folder that it lies in."""
        found, without = [], []
        for folder in self.folders:
            try:
                found.append(folder.labelled(training=False))
            except NoLabels as error:
                without.append(error)
        if without:
            raise (InputError if found else NoLabels)(str(without[0])) from without[0]
        classes = united([each.classes for each in found])
        numbers = {plain(name): number for number, name in enumerate(classes)}
        own = [np.array([numbers[plain(name)] for name in each.classes], np.int32)[each.labels] for each in found]
        labels = np.concatenate(own)[self.order]
        counts = np.bincount(labels, minlength=len(classes))
        if training and not counts.all():
            empty = f"class folder {classes[counts.argmin()]!r} has no images in any of"
            raise InputError(f"{empty} {self.roots}: expected some, or no folder")
        return Listed(self, labels, classes)

    @property
    def roots(self) -> tuple[str, ...]:
        return tuple(folder.root for folder in self.folders)

    def parts(self) -> Iterator[bytes]:
        for folder in self.folders:
            yield from folder.parts()

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        """Compares paths where a folder of one split lies inside one of the other."""
        if self.folders == other.folders:
            return len(np.intersect1d(rows, others))
        if not any(nested(one, another) for one in self.roots for another in other.roots):
            return 0
        return len(paths_at(self, rows) & paths_at(other, others))


def refuse_shared(paths: Paths, folders: list[str]) -> None:
    """Raises InputError where one of `folders`, the splits of `paths`, is another one or lies in it."""
    places = [folder if is_url(folder) else os.path.realpath(folder) for folder in folders]
    for (one, here), (other, there) in combinations(zip(paths, places), 2):
        if here == there:
            raise InputError(f"data.path has {one!r} and {other!r}, which are one folder: expected each once")
        if nested(here, there):
            inner, outer = (one, other) if len(here) > len(there) else (other, one)
            raise InputError(f"data.path has {inner!r} and {outer!r}: expected no folder inside another, read twice")


def united(sets: list[Classes]) -> Classes:
    """The classes of all folders, in the order of their names.

    Raises InputError where a class of one folder differs from that of another in case alone.
    """
    classes = {}
    for names in sets:
        folded = {name.casefold(): name for name in classes}
        for name in names:
            near = folded.get(plain(name).casefold(), plain(name))
            if near != plain(name) and plain(name) not in classes:
                found = f"data.path has class folders {near!r} and {name!r}"
                raise InputError(f"{found}, which differ in case alone: expected one name")
        classes = {plain(name): name for name in names} | classes
    return tuple(classes[name] for name in sorted(classes))
