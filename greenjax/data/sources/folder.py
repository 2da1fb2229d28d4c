"""Image files below a directory; with labels, class folders of them."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int
from ml_collections import ConfigDict

from greenjax.data.encoded import LARGE, DecodeError, Encoded
from greenjax.data.labels import Listed
from greenjax.data.sources.base import Source
from greenjax.errors import InputError, listed, refuse
from greenjax.runtime.classes import plain
from greenjax.runtime.files import expanded, folders_in

SUFFIXES = (".avif", ".bmp", ".btf", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".npy", ".npz")
SUFFIXES += (".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tf8", ".tif", ".tiff", ".webp")
# Image formats that are not read; a warning counts such files. Files with other suffixes are left out silently.
UNREAD = (".apng", ".arw", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".ico")
UNREAD += (".jxl", ".jxr", ".nef", ".orf", ".pcx", ".pfm", ".psd", ".raf", ".rw2", ".sgi", ".svg", ".tga", ".xcf")


@dataclass(frozen=True)
class FolderSource(Source):
    """The images below data.path (split "all") or below one of its sub-folders; class folders are optional.

    Images are sorted by a hash of their names: a slice has images of all classes, and a new file does not change the
    order of the others.
    """

    root: str
    names: list[str]  # paths relative to root

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        if not values["data.path"]:
            refuse(values, "data.path", "a directory of images for data.source 'folder'")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "FolderSource":
        root = split_folder(data, split)
        names = find_images(root)
        if not names:
            raise InputError(f"{str(root)!r} has no images: expected *{', *'.join(SUFFIXES)}, at any depth")
        names.sort(key=by_hash)
        return cls(str(root), names)

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, index: int) -> Encoded:
        path = self.name_of(index)
        try:
            with open(path, "rb", buffering=0) as file:  # one read of the whole file needs no buffer
                if os.fstat(file.fileno()).st_size < LARGE:
                    return Encoded(file.read(), path)
                return Encoded(mmap(file.fileno(), 0, access=ACCESS_READ), path)
        except OSError as error:
            raise DecodeError(f"{path} cannot be read: {error.strerror}") from error

    def name_of(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])

    def labelled(self, training: bool) -> Listed:
        """Each image with the class folder that it lies in."""
        classes = class_folders(self.root)
        labels = np.array([label_of(self.root, name, classes) for name in self.names], np.int32)
        counts = np.bincount(labels, minlength=len(classes))
        if training and not counts.all():
            empty = os.path.join(self.root, list(classes)[counts.argmin()])
            raise InputError(f"class folder {empty!r} has no images: expected some, or no folder")
        return Listed(self, labels, tuple(classes))

    def parts(self) -> Iterator[bytes]:
        yield os.fsencode("\0".join(self.names))

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        """Compares paths where one split lies inside the other."""
        if self == other:
            return super().in_both(rows, other, others)
        roots = [os.path.abspath(source.root) for source in (self, other)]
        return len(self.paths(rows) & other.paths(others)) if os.path.commonpath(roots) in roots else 0

    def paths(self, rows: Int[np.ndarray, " n"]) -> set[str]:
        return {os.path.abspath(self.name_of(int(row))) for row in rows}


def by_hash(name: str) -> bytes:
    """The place of an image in the order of a source: slices of that order have images of all classes."""
    return blake2b(os.fsencode(name), digest_size=8).digest()


def split_folder(data: ConfigDict, split: str) -> Path:
    """The directory of a split. Raises InputError where it is missing."""
    root = expanded(data.path)
    if not data.path or not root.is_dir():
        raise InputError(f"data.path is {data.path!r}: expected a directory of images")
    if split == "all":
        return root
    if not (root / split).is_dir():
        available = listed(["all", *folders_in(root)])
        raise InputError(f"{str(root)!r} has no sub-folder for split {split!r}: available are {available}")
    return root / split


# Image files


def find_images(root: Path) -> list[str]:
    """Paths of all images below `root`, relative to it, sorted; hidden files and folders are left out.

    An image is a regular file: opening a pipe would block. One warning counts the files that look like images and are
    left out.
    """
    names, left_out, seen, folders = [], Counter(), set(), [""]
    while folders:
        folder = folders.pop()
        real = os.path.realpath(root / folder)
        if real in seen:  # a symbolic link back up
            continue
        seen.add(real)
        inside = []
        for entry in scan(root / folder):
            path = os.path.join(folder, entry.name)
            suffix = os.path.splitext(entry.name)[1].lower()
            if holds(entry.is_dir):
                inside.append(path)
            elif suffix not in SUFFIXES:
                left_out[suffix] += suffix in UNREAD
            elif holds(entry.is_file):
                names.append(path)
            else:
                left_out["pipes, devices or broken links"] += 1
        folders += reversed(inside)
    warn_of_left_out(root, left_out)
    return sorted(names)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden files and folders."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        warn_once(f"{folder} cannot be read: {error.strerror}")
        return []


def holds(test: Callable[[], bool]) -> bool:
    """The result of a test of a directory entry; False for a symbolic link that cannot be followed."""
    try:
        return test()
    except OSError:
        return False


def warn_of_left_out(root: Path, left_out: Counter[str]) -> None:
    counts = [f"{count} {kind}" for kind, count in left_out.most_common() if count]
    if counts:
        total = left_out.total()
        files = "1 file is" if total == 1 else f"{total} files are"
        warn_once(f"{root}: {files} left out: {', '.join(counts)}: expected {', '.join(SUFFIXES)}")


@cache
def warn_once(message: str) -> None:
    """Logs a warning once a process, however many splits are read from the same folder."""
    logging.warning("%s", message)


# Class folders


def class_folders(root: str) -> dict[str, int]:
    """The sub-folders of a split, numbered in the order of their names."""
    folders = sorted(folders_in(Path(root)), key=plain)  # the same order however a file system writes accents
    if not folders:
        raise InputError(f"{root!r} has no class folders, hence no labels: expected {root}/CLASS/IMAGE")
    for one, other in pairwise(folders):
        if plain(one) == plain(other):
            raise InputError(f"{root!r} has two class folders {one!r}, spelt with other characters: expected one")
    return {name: index for index, name in enumerate(folders)}


def label_of(root: str, name: str, classes: Mapping[str, int]) -> int:
    """The label of the image `name`, relative to `root`: the number of the first folder in its name."""
    folder, _, inside = name.partition(os.sep)
    if not inside:
        raise InputError(f"image {os.path.join(root, name)!r} has no label: expected it in a class folder")
    return classes[folder]
