"""Images with the class they belong to, for fine-tuning and evaluation. Pre-training never comes here.

A label is the index of a class among `classes`. Digits are 0 to 9; the classes of a directory are the sub-folders of
the split, sorted by name; those of a TFDS data set are as it says; records have those of their source. Two sets may
number their classes differently: `matched` gives the images of one the labels of another, by name.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Integer, UInt8
from ml_collections import ConfigDict

from greenjax.data.classes import Classes, plain, same
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

    def name_of(self, index: int) -> str:
        """What a person finds the image by: a file's path, or its place in the data set."""
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
    check_labels(labels, count, "model.num_classes")


def check_labels(labels: Integer[np.ndarray, " n"], count: int, whose: str) -> None:
    """Raises InputError for the first label that is none of `count` classes."""
    for index in np.flatnonzero((labels < 0) | (labels >= count)):
        raise InputError(f"label {labels[index]} of image {index}: expected 0 or more, below {count} ({whose})")


class Matched(NamedTuple):
    """A set of images under the labels of other classes."""

    source: LabelledSource
    left_out: dict[str, int]  # images whose class is none of those, by class
    missing: Classes  # classes of which the set has no image

    def lines(self, name: str) -> list[str]:
        """What a reader has to know of the set `name`: one line, or none."""
        found = []
        if self.missing:
            share = f"{len(self.missing)} of {len(self.source.classes)} classes"
            found.append(f"no images of {share}, {listed(self.missing)}")
        if self.left_out:
            count = sum(self.left_out.values())
            found.append(f"{count:,} images of unknown classes left out, {listed(self.left_out)}")
        return [f"{name}: {'; '.join(found)}"] if found else []


def matched(source: LabelledSource, classes: Sequence[str], name: str, remedy: str = "") -> Matched:
    """The images of `source`, the set `name`, labelled by `classes`: classes are the same where their names are.

    Images of other classes are left out. Raises InputError where no class is the same, or one is but for its case;
    `remedy` is said there.
    """
    classes = tuple(classes)
    labels = source.labels
    if labels is not None:
        check_labels(labels, len(source.classes), f"the classes of {name}")
    if same(source.classes, classes):
        return Matched(source, {}, _without_images(classes, labels))
    numbers = np.array(_numbers(source.classes, classes, name, remedy), np.int32)
    left_out: dict[str, int] = {}
    if (numbers < 0).any():
        found = enumerate(labels.tolist()) if labels is not None else readable_labels(source)
        unknown = {index: source.classes[label] for index, label in found if numbers[label] < 0}
        left_out = dict(sorted(Counter(unknown.values()).items()))
        if len(unknown) == len(source):
            raise InputError(f"{name} has images of {listed(left_out)} only: expected some of {listed(classes)}")
        if unknown:
            source = Chosen(source, np.setdiff1d(np.arange(len(source)), list(unknown)))
    source = Renumbered(source, classes, numbers)
    return Matched(source, left_out, _without_images(classes, source.labels, numbers))


def _numbers(names: Sequence[str], classes: Classes, where: str, remedy: str) -> list[int]:
    """The index of each name among the classes, -1 where it is none of them."""
    known = {plain(name): index for index, name in enumerate(classes)}
    if len(known) < len(classes):
        twice = next(name for index, name in enumerate(classes) if known[plain(name)] != index)
        raise InputError(f"two classes have the name {twice!r}: the classes of {where} cannot be told by name{remedy}")
    found = [known.get(plain(name), -1) for name in names]
    folded = {name.casefold(): name for name in known}
    for name, number in zip(names, found):
        if number < 0 and (near := folded.get(plain(name).casefold())):
            raise InputError(f"{where} has class {name!r}: expected {near!r}, the class that differs in case alone")
    if max(found, default=-1) < 0:
        raise InputError(f"{where} has classes {listed(names)}: expected some of {listed(classes)}{remedy}")
    return found


def _without_images(
    classes: Classes, labels: Integer[np.ndarray, " n"] | None, numbers: Integer[np.ndarray, " m"] | None = None
) -> Classes:
    """The classes without an image; where the labels are not known, those that the set does not name."""
    present = set(range(len(classes)) if numbers is None else numbers.tolist())
    present = present if labels is None else set(labels.tolist())
    return tuple(name for index, name in enumerate(classes) if index not in present)


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

    def name_of(self, index: int) -> str:
        named = getattr(self.images, "name_of", None)
        return str(index) if named is None else named(index)


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

    def name_of(self, index: int) -> str:
        return self.source.name_of(int(self.rows[index]))


@dataclass(frozen=True)
class Renumbered:
    """The images of another source under other classes: its label i is number numbers[i] of `classes`."""

    source: LabelledSource
    classes: Classes
    numbers: Int32[np.ndarray, " m"]

    @property
    def labels(self) -> Int32[np.ndarray, " n"] | None:
        return None if self.source.labels is None else self.numbers[self.source.labels]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        image, label = self.source[index]
        return image, int(self.numbers[label])

    def encoded(self, index: int) -> tuple[Image, int]:
        image, label = undecoded(self.source, index)
        return image, int(self.numbers[label])

    def label(self, index: int) -> int:
        return int(self.numbers[self.source.label(index)])

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)


# Digits


def labelled_digits(data: ConfigDict, name: str) -> Listed:
    return Listed(*read_digits(name), tuple("0123456789"))


# Folder


def labelled_folder(data: ConfigDict, name: str) -> Listed:
    """A split whose images lie in class folders; in the training split each of them has images."""
    source = open_folder(data, name)
    classes = class_folders(source.root)
    labels = np.array([folder_label(source, name, classes) for name in source.names], np.int32)
    counts = np.bincount(labels, minlength=len(classes))
    if name == parse_split(data.split)[0] and not counts.all():
        empty = os.path.join(source.root, list(classes)[counts.argmin()])
        raise InputError(f"class folder {empty!r} has no images: expected some, or no folder")
    return Listed(source, labels, tuple(classes))


def class_folders(root: str) -> dict[str, int]:
    """The sub-folders of a split, numbered in the order of their names."""
    folders = sorted(folders_in(Path(root)), key=plain)  # in one order, however a file system writes accents
    if not folders:
        raise InputError(f"{root!r} has no class folders, hence no labels: expected {root}/CLASS/IMAGE")
    for one, other in pairwise(folders):
        if plain(one) == plain(other):
            raise InputError(f"{root!r} has two class folders {one!r}, spelt with other characters: expected one")
    return {name: index for index, name in enumerate(folders)}


def folder_label(source: FolderSource, name: str, classes: Mapping[str, int]) -> int:
    """The label of the image `name` of a source, by the first folder in its name."""
    folder, _, inside = name.partition(os.sep)
    if not inside:
        raise InputError(f"image {os.path.join(source.root, name)!r} has no label: expected it in a class folder")
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

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)

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
