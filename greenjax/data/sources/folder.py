"""Image files below a directory; with labels, class folders of them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32
from ml_collections import ConfigDict

from greenjax.data.encoded import LARGE, DecodeError, Encoded
from greenjax.data.labels import Listed
from greenjax.data.remote import Remote, is_url, joined
from greenjax.data.sources.base import Source
from greenjax.data.sources.image_files import SUFFIXES, names_at, names_below
from greenjax.data.sources.names import Names
from greenjax.errors import InputError, NoLabels, listed, refuse
from greenjax.runtime.classes import in_order
from greenjax.runtime.files import expanded, folders_in


@dataclass(frozen=True)
class FolderSource(Source):
    """The images below data.path (split "all") or below one of its sub-folders; class folders are optional.

    Images are sorted by a hash of their names: a slice has images of all classes, and a new file does not change the
    order of the others.
    """

    root: str
    names: Names  # paths relative to root
    remote: Remote | None = field(default=None, kw_only=True, compare=False)  # where the images have URLs

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        if not values["data.path"]:
            refuse(values, "data.path", "a directory of images for data.source 'folder'")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "FolderSource":
        remote = Remote.of(data, [data.path]) if is_url(data.path) else None
        root = split_folder(data, split)
        names = names_below(Path(root)) if remote is None else names_at(root, remote)
        if not names:
            raise InputError(f"{root!r} has no images: expected *{', *'.join(SUFFIXES)}, at any depth")
        if remote is not None:
            remote.check_rights([joined(root, names[0])])
        return cls(root, names, remote=remote)

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, index: int) -> Encoded:
        path = self.name_of(index)
        if self.remote is not None and is_url(path):
            return Encoded(self.remote.read(path), path)
        return read_file(path)

    def name_of(self, index: int) -> str:
        return joined(self.root, self.names[index])

    def labelled(self, training: bool) -> Listed:
        """Each image with the class folder that it lies in."""
        inside = {name.partition("/")[0] for name in self.names if "/" in name} if is_url(self.root) else None
        classes = class_folders(self.root, folders_in(Path(self.root)) if inside is None else inside)
        labels = labels_of(self.root, self.names, classes)
        counts = np.bincount(labels, minlength=len(classes))
        if training and not counts.all():
            empty = os.path.join(self.root, list(classes)[counts.argmin()])
            raise InputError(f"class folder {empty!r} has no images: expected some, or no folder")
        return Listed(self, labels, tuple(classes))

    def parts(self) -> Iterator[bytes]:
        yield self.names.text.tobytes()

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        """Compares paths where one split lies inside the other."""
        if self == other:
            return super().in_both(rows, other, others)
        return len(paths_at(self, rows) & paths_at(other, others)) if nested(self.root, other.root) else 0


def paths_at(source: Source, rows: Int[np.ndarray, " n"]) -> set[str]:
    """The absolute paths of images of a source that names them by their paths."""
    return {os.path.abspath(source.name_of(int(row))) for row in rows}


def read_file(path: str) -> Encoded:
    """The image in a file. Raises DecodeError."""
    try:
        with open(path, "rb", buffering=0) as file:  # one read of the whole file needs no buffer
            if os.fstat(file.fileno()).st_size < LARGE:
                return Encoded(file.read(), path)
            return Encoded(mmap(file.fileno(), 0, access=ACCESS_READ), path)
    except OSError as error:
        raise DecodeError(f"{path} cannot be read: {error.strerror}") from error


def nested(one: str, other: str) -> bool:
    """Whether one folder is the other, or lies in it."""
    roots = [os.path.abspath(root) for root in (one, other)]
    return is_url(one) == is_url(other) and os.path.commonpath(roots) in roots


def split_folder(data: ConfigDict, split: str, verb: str = "is") -> str:
    """The directory, or the URL, of a split.

    Raises InputError for a directory that is missing, with the `verb` "has" where data.path names several.
    """
    if is_url(data.path):
        return data.path.rstrip("/") + ("" if split == "all" else f"/{split}")
    root = expanded(data.path)
    if not data.path or not root.is_dir():
        raise InputError(f"data.path {verb} {data.path!r}: expected a directory of images")
    if split == "all":
        return str(root)
    if not (root / split).is_dir():
        available = listed(["all", *folders_in(root)])
        raise InputError(f"{str(root)!r} has no sub-folder for split {split!r}: available are {available}")
    return str(root / split)


# Class folders


def class_folders(root: str, inside: Iterable[str]) -> dict[str, int]:
    """The folders inside of a split, numbered in the order of their names."""
    folders = in_order(inside, repr(root))  # the same order however a file system writes accents
    if not folders:
        raise NoLabels(f"{root!r} has no class folders, hence no labels: expected {root}/CLASS/IMAGE")
    return {name: index for index, name in enumerate(folders)}


def labels_of(root: str, names: Names, classes: Mapping[str, int]) -> Int32[np.ndarray, " n"]:
    """The labels of the images `names`, relative to `root`: the number of the first folder in each name."""
    labels = np.array([classes.get(name.partition(os.sep)[0], -1) for name in names], np.int32)
    if labels.min() < 0:
        image, kind = os.path.join(root, names[int(labels.argmin())]), InputError if labels.max() >= 0 else NoLabels
        raise kind(f"image {image!r} has no label: expected it in a class folder")
    return labels
