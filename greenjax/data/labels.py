"""Images with labels, for fine-tuning and evaluation: parts of sets, and sets under the classes of another one.

A label is the index of a class among `classes`. Each source gives its images their labels (`Source.labelled`). Two sets
may number their classes differently: `matched` gives the images of one set the labels of the other, by name.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Image, Images, Undecoded, undecoded
from greenjax.errors import InputError, listed
from greenjax.runtime.classes import Classes, in_order, plain, same


@runtime_checkable
class LabelledSource(Protocol):
    """Images by index, each with its label."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: label i is classes[i]."""
        ...

    @property
    def labels(self) -> Int32[np.ndarray, " n"] | None:
        """All labels; None where reading them would read all images (TFDS)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        """One image, c = 1 or 3, and its label. Raises DecodeError."""
        ...

    def label(self, index: int) -> int:
        """The label alone; the image is not decoded."""
        ...

    def name_of(self, index: int) -> str:
        """The name by which a person finds the image: a file's path, or its place in the data set."""
        ...


@dataclass(frozen=True)
class Listed(Undecoded):
    """Images whose labels are in one array."""

    source: Images | UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self, index: int) -> tuple[Image, int]:
        return undecoded(self.source, index), self.label(index)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name_of(self, index: int) -> str:
        named = getattr(self.source, "name_of", None)
        return str(index) if named is None else named(index)


def by_name(source: Images, names: Sequence[str]) -> Listed:
    """Images with the names of their classes: classes are in the order of their names, or, if all are whole numbers, of
    their values. Raises InputError for two spellings of one name or number."""
    found = set(names)
    classes = in_order(found, "data.path", int if all(name.isdecimal() for name in found) else plain)
    index = {name: label for label, name in enumerate(classes)}
    return Listed(source, np.array([index[name] for name in names], np.int32), classes)


@dataclass(frozen=True)
class Chosen(Undecoded):
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

    def encoded(self, index: int) -> tuple[Image, int]:
        return undecoded(self.source, int(self.rows[index]))

    def label(self, index: int) -> int:
        return self.source.label(int(self.rows[index]))

    def name_of(self, index: int) -> str:
        return self.source.name_of(int(self.rows[index]))


@dataclass(frozen=True)
class Renumbered(Undecoded):
    """The images of another source under other classes: its label i is number numbers[i] of `classes`."""

    source: LabelledSource
    classes: Classes
    numbers: Int32[np.ndarray, " m"]

    @property
    def labels(self) -> Int32[np.ndarray, " n"] | None:
        return None if self.source.labels is None else self.numbers[self.source.labels]

    def __len__(self) -> int:
        return len(self.source)

    def encoded(self, index: int) -> tuple[Image, int]:
        image, label = undecoded(self.source, index)
        return image, int(self.numbers[label])

    def label(self, index: int) -> int:
        return int(self.numbers[self.source.label(index)])

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)


# Parts of a set


def evenly_spaced(source: LabelledSource, most: int) -> LabelledSource:
    """At most `most` images of a source, from all over it: many sets are stored class by class."""
    return source if len(source) <= most else Chosen(source, spaced_rows(len(source), most))


def spaced_rows(length: int, count: int) -> Int64[np.ndarray, " n"]:
    """`count` rows of `length`, evenly spaced from the first."""
    return np.arange(count, dtype=np.int64) * length // count


def first_of_each_class(source: LabelledSource, count: int, split: str) -> Int32[np.ndarray, " n"]:
    """Indices of the first `count` images of every class; labels are read no further than needed."""
    chosen, missing = [], np.full(len(source.classes), count)
    for index, label in readable_labels(source):
        if not 0 <= label < missing.size:
            check_labels(np.array([label]), missing.size, f"the classes of split {split!r}", [index])
        if missing[label]:
            missing[label] -= 1
            chosen.append(index)
            if len(chosen) == missing.size * count:
                return np.array(chosen, np.int32)
    label = int(missing.argmax())
    found = f"class {source.classes[label]!r} has {count - missing[label]} images in split {split!r}"
    raise InputError(f"data.per_class is {count}: expected at most what each class has: {found}")


def readable_labels(source: LabelledSource) -> Iterator[tuple[int, int]]:
    """Every index and its label; skips damaged records, which are named and replaced when their image is read."""
    for index in range(len(source)):
        with suppress(DecodeError):
            yield index, source.label(index)


# Classes of the model


def check_several(classes: Sequence[str], whose: str) -> None:
    """Raises InputError where there are fewer than two classes: nothing is learnt from one."""
    if len(classes) < 2:
        found = f"one class, {classes[0]!r}" if classes else "no class"
        raise InputError(f"{whose} has {found}: expected at least 2, to tell apart")


def check_classes(config: ConfigDict, source: LabelledSource) -> None:
    """Raises InputError where the source has labels for which the model has no output.

    Of a source that does not have its labels in an array only the first label is read here; the others are checked when
    their image is read.
    """
    count = config.model.num_classes
    labels = source.labels
    if labels is None:
        labels = np.array([label for _, label in islice(readable_labels(source), 1)], np.int32)
    if count is None:  # k-NN has no classifier, and takes any classes
        return
    if len(source.classes) > count:
        found = f"the {len(source.classes)} classes of the data, {listed(source.classes)}"
        raise InputError(f"model.num_classes is {count}: expected at least {found}")
    check_labels(labels, count, "model.num_classes")


def check_labels(
    labels: Integer[np.ndarray, " n"], count: int, whose: str = "the number of classes", index: Any = None
) -> None:
    """Raises InputError for the first label that is none of `count` classes. `index`: the images' numbers."""
    for row in np.flatnonzero((labels < 0) | (labels >= count))[:1]:
        image = row if index is None else index[row]
        raise InputError(f"label {labels[row]} of image {image}: expected 0 or more, below {count} ({whose})")


class Matched(NamedTuple):
    """A set of images under the labels of other classes."""

    source: LabelledSource
    left_out: dict[str, int]  # images of unknown classes, counted by class
    missing: Classes  # classes of which the set has no image

    @property
    def counts(self) -> dict[str, int]:
        """What results say of it: "left_out", where some images were."""
        return {"left_out": sum(self.left_out.values())} if self.left_out else {}

    def lines(self, name: str) -> list[str]:
        """One line about the set `name` that says which classes differ; none where all are the same."""
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

    Images of other classes are left out. Raises InputError, which ends with `remedy`, where no class is the same; and
    where a class differs from a known one in case alone.
    """
    classes = tuple(classes)
    labels = source.labels
    if labels is not None:
        check_labels(labels, len(source.classes), f"the classes of {name}")
    if same(source.classes, classes):
        return Matched(source, {}, without_images(classes, labels))
    numbers = np.array(numbers_of(source.classes, classes, name, remedy), np.int32)
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
    return Matched(source, left_out, without_images(classes, source.labels, numbers))


def numbers_of(names: Sequence[str], classes: Classes, where: str, remedy: str) -> list[int]:
    """The index of each name among the classes, -1 for an unknown name."""
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


def without_images(
    classes: Classes, labels: Integer[np.ndarray, " n"] | None, numbers: Integer[np.ndarray, " m"] | None = None
) -> Classes:
    """The classes that have no image; where labels are not known, the classes that the set does not name."""
    present = set(range(len(classes)) if numbers is None else numbers.tolist())
    present = present if labels is None else set(labels.tolist())
    return tuple(name for index, name in enumerate(classes) if index not in present)
