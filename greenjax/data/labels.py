"""Images with the class they belong to, for fine-tuning and evaluation. Pre-training never comes here.

A label is the index of a class among `classes`. Digits are 0 to 9; the classes of a directory are the sub-folders of
its training split, sorted by name; those of a TFDS data set are as it says; records have those of their source.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Integer, UInt8
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Image, decoded, undecoded
from greenjax.data.records import open_labelled_records
from greenjax.data.sources import (
    FolderSource,
    Source,
    TfdsSource,
    features_of,
    folders_in,
    named_or_only,
    open_folder,
    open_tfds,
    opener,
    parse_split,
    read_digits,
    split_folder,
    split_range,
)
from greenjax.errors import InputError, listed


@runtime_checkable
class LabelledSource(Protocol):
    """Images by index, each with its label."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: label i is classes[i]."""
        ...

    @property
    def labels(self) -> Int32[np.ndarray, " n"] | None:
        """All labels; None where nobody has them without reading the images' files as well (TFDS)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        """One image, c = 1 or 3, and its label. Raises DecodeError."""
        ...

    def label(self, index: int) -> int:
        """The label alone; the image is not decoded."""
        ...


def open_labelled(data: ConfigDict, split: str) -> LabelledSource:
    """The images of a split of the data set that `config.data` describes, with their labels.

    Of the training split, `data.split`, only the first `data.per_class` images of each class where that is given.
    Raises InputError if the data set, the split or its labels are not there, or are not as expected.
    """
    name, _, _ = parse_split(split)
    openers = {
        "digits": labelled_digits,
        "folder": labelled_folder,
        "records": labelled_records,
        "tfds": labelled_tfds,
    }
    source: LabelledSource = opener(data, openers)(data, name)
    rows = split_range(split, len(source))
    if len(rows) < len(source):
        source = Chosen(source, rows)
    if data.per_class and split == data.split:
        source = Chosen(source, first_of_each_class(source, data.per_class, split))
    return source


def first_images(source: LabelledSource, most: int) -> LabelledSource:
    """At most the first `most` images of a source."""
    return source if len(source) <= most else Chosen(source, np.arange(most, dtype=np.int32))


def check_classes(config: ConfigDict, source: LabelledSource) -> None:
    """Raises InputError where the source has labels that the model has no output for.

    Labels that are not cheap to read are looked at when their image is read, but for the first.
    """
    count = config.model.num_classes
    labels = source.labels
    if labels is None:
        labels = np.array([label for _, label in islice(readable_labels(source), 1)], np.int32)
    if count is None:  # no classifier: k-NN takes any classes
        return
    if len(source.classes) > count:
        found = f"the {len(source.classes)} classes of the data, {listed(source.classes)}"
        raise InputError(f"model.num_classes is {count}: expected at least {found}")
    for index in np.flatnonzero((labels < 0) | (labels >= count)):
        allowed = f"0 or more, below {count} (model.num_classes)"
        raise InputError(f"label {labels[index]} of image {index}: expected {allowed}")


def readable_labels(source: LabelledSource) -> Iterator[tuple[int, int]]:
    """Every index and its label, but for damaged records: they are named and replaced when their image is read."""
    for index in range(len(source)):
        with suppress(DecodeError):
            yield index, source.label(index)


def first_of_each_class(source: LabelledSource, count: int, split: str) -> Int32[np.ndarray, " n"]:
    """Indices of the first `count` images of every class; labels are read no further than needed."""
    chosen, missing = [], np.full(len(source.classes), count)
    for index, label in readable_labels(source):
        if missing[label]:
            missing[label] -= 1
            chosen.append(index)
            if len(chosen) == missing.size * count:
                return np.array(chosen, np.int32)
    label = int(missing.argmax())
    found = f"class {source.classes[label]!r} has {count - missing[label]} images in split {split!r}"
    raise InputError(f"data.per_class is {count}: expected at most what each class has: {found}")


def draw_of_each_class(source: LabelledSource, count: int, seed: int, split: str) -> LabelledSource:
    """`count` images of every class, drawn by `seed`; `split` names the source in errors."""
    shuffled = Chosen(source, np.random.default_rng(seed).permutation(len(source)))
    return Chosen(shuffled, first_of_each_class(shuffled, count, split))


@dataclass(frozen=True)
class Listed:
    """Images whose labels are known beforehand."""

    images: Source | UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        return self.images[index], self.label(index)

    def encoded(self, index: int) -> tuple[Image, int]:
        return undecoded(self.images, index), self.label(index)

    def label(self, index: int) -> int:
        return int(self.labels[index])


@dataclass(frozen=True)
class Chosen:
    """Some images of another source, in the order of `rows`."""

    source: LabelledSource
    rows: range | Integer[np.ndarray, " n"]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def labels(self) -> Int32[np.ndarray, " n"] | None:
        return None if self.source.labels is None else self.source.labels[np.asarray(self.rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        return self.source[int(self.rows[index])]

    def encoded(self, index: int) -> tuple[Image, int]:
        return undecoded(self.source, int(self.rows[index]))

    def label(self, index: int) -> int:
        return self.source.label(int(self.rows[index]))


# Digits


def labelled_digits(data: ConfigDict, name: str) -> Listed:
    return Listed(*read_digits(name), tuple("0123456789"))


# Folder


def labelled_folder(data: ConfigDict, name: str) -> Listed:
    """A split whose images lie in class folders. Those of the training split say which classes there are.

    Another split may lack classes, but has no others: its labels are indices among the same classes.
    """
    source = open_folder(data, name)
    root = training_folder(data)
    classes = {name: index for index, name in enumerate(folders_in(root))}
    if not classes:
        raise InputError(f"{str(root)!r} has no class folders, hence no labels: expected {root}/CLASS/IMAGE")
    labels = np.array([folder_label(source, name, classes, data.split) for name in source.names], np.int32)
    counts = np.bincount(labels, minlength=len(classes))
    if Path(source.root) == root and not counts.all():
        empty = root / list(classes)[counts.argmin()]
        raise InputError(f"class folder {str(empty)!r} has no images: expected some, or no folder")
    return Listed(source, labels, tuple(classes))


def training_folder(data: ConfigDict) -> Path:
    """The directory whose sub-folders are the classes."""
    try:
        return split_folder(data, parse_split(data.split)[0])
    except InputError as error:
        raise InputError(f"data.split, whose folders are the classes, is {data.split!r}: {error}") from error


def folder_label(source: FolderSource, name: str, classes: Mapping[str, int], split: str) -> int:
    """The label of the image `name` of a source, by the first folder in its name."""
    folder, _, inside = name.partition(os.sep)
    if not inside:
        raise InputError(f"image {os.path.join(source.root, name)!r} has no label: expected it in a class folder")
    if folder not in classes:
        found = f"{source.root!r} has class {folder!r}"
        raise InputError(f"{found}: expected a class of data.split {split!r}, {listed(classes)}")
    return classes[folder]


# Records


def labelled_records(data: ConfigDict, name: str) -> Listed:
    return Listed(*open_labelled_records(data, name))


# TFDS


@dataclass(frozen=True)
class TfdsLabelled:
    """One split of a TFDS data set. A record holds image and label, so labels cannot be read without the images."""

    source: TfdsSource
    feature: str
    classes: tuple[str, ...]
    labels: None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        image, label = self.encoded(index)
        return decoded(image), label

    def encoded(self, index: int) -> tuple[Image, int]:
        example = self.source.example(index)
        return self.source.image_of(example, index), self._checked(example, index)

    def label(self, index: int) -> int:
        return self._checked(self.source.example(index), index)

    def _checked(self, example: Mapping[str, Any], index: int) -> int:
        label = int(example[self.feature])
        if not 0 <= label < len(self.classes):  # -1 is how TFDS marks images whose class is not public
            allowed = f"0 or more, below {len(self.classes)}, the classes of feature {self.feature!r}"
            raise InputError(f"label {label} of image {self.source.name_of(index)}: expected {allowed}")
        return label


def labelled_tfds(data: ConfigDict, name: str) -> TfdsLabelled:
    """A split of a prepared TFDS data set with its class label: the feature `label`, or the only one of its kind."""
    import tensorflow_datasets as tfds  # only this source needs it

    source = open_tfds(data, name)
    features = source.examples.dataset_info.features
    label = named_or_only("label", features_of(features, tfds.features.ClassLabel))
    if label is None:
        found = f"its features are {listed(sorted(features))}"
        raise InputError(f"{source.name!r} needs a class label, named 'label' or the only one: {found}")
    return TfdsLabelled(source, label, tuple(features[label].names))
