"""Opens a split of the data set that `config.data` locates, with labels, with objects, or with neither.

A split is NAME or NAME[from:to], where from and to count images or percent (train[:98%]), negative ones from the end.
"""

import re
from dataclasses import dataclass

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from greenjax.data.encoded import Image, Images, Undecoded
from greenjax.data.labels import Chosen, LabelledSource, first_of_each_class
from greenjax.data.sources import SEVERAL, SOURCES, Source
from greenjax.data.sources.objects import ObjectSource, WithObjects
from greenjax.errors import InputError, listed
from greenjax.runtime.classes import Classes

SPLIT = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<start>(-?\d+%?)?):(?P<stop>(-?\d+%?)?)\])?")


def open_source(data: ConfigDict, split: str) -> Images:
    """The images of a split.

    Raises InputError if the data set, the split or any image in it is missing.
    """
    source = open_whole(data, split)
    rows = split_range(split, len(source))
    return source if len(rows) == len(source) else Slice(source, rows.start, rows.stop)


def open_labelled(data: ConfigDict, split: str) -> LabelledSource:
    """The images of a split with their labels.

    Of the training split, `data.split`, only the first `data.per_class` images of each class where that is given.
    Raises InputError if the data set, the split or its labels are missing, or are not as expected.
    """
    training = parse_split(split)[0] == parse_split(data.split)[0]
    source = open_whole(data, split).labelled(training)
    rows = split_range(split, len(source))
    if len(rows) < len(source):
        source = Chosen(source, rows)
    if data.per_class and split == data.split:
        source = Chosen(source, first_of_each_class(source, data.per_class, split))
    return source


def open_objects(config: ConfigDict, split: str, classes: Classes = (), *, training: bool = False) -> WithObjects:
    """The images of a split with their objects, under the classes of a model, or under their own.

    For training, images without objects are left out unless `detect.keep_empty`. Raises InputError where the data set
    or the split is missing, has no objects, or has a class that the model does not have.
    """
    data = config.data
    if not issubclass(SOURCES.get(data.source, ObjectSource), ObjectSource):
        known = listed(name for name, kind in SOURCES.items() if issubclass(kind, ObjectSource))
        raise InputError(f"data.source is {data.source!r}: expected one whose images have objects, {known}")
    source = open_whole(data, split)
    assert isinstance(source, ObjectSource)
    rows, counts = np.array(split_range(split, len(source))), source.counts()
    if training and not config.detect.keep_empty:
        rows = rows[counts[rows] > 0]
        if not len(rows):
            raise InputError(f"split {split!r} has no image with an object: expected some, to be trained on")
    many = np.count_nonzero(counts[rows] > config.detect.max_objects)
    if many and training:
        found = f"up to {many:,} images of {split!r} have more objects than detect.max_objects"
        logging.warning("%s, %d: the largest ones are learnt", found, config.detect.max_objects)
    return WithObjects.of(source, rows, classes or source.classes, split)


def open_whole(data: ConfigDict, split: str) -> Source:
    """The whole split of which `split` may be a slice."""
    if data.source not in SOURCES:
        raise InputError(f"data.source is {data.source!r}: expected one of {listed(SOURCES)}")
    kinds = SEVERAL if isinstance(data.path, tuple) else SOURCES
    return kinds[data.source].open(data, parse_split(split)[0])


def parse_split(split: str) -> tuple[str, str, str]:
    """The name and the two boundaries of a split, "" where not given. Raises InputError for another grammar."""
    match = SPLIT.fullmatch(split)
    if match is None:
        raise InputError(f"split {split!r}: expected NAME or NAME[from:to], such as train or train[:98%]")
    return match["name"], match["start"] or "", match["stop"] or ""


def split_range(split: str, length: int) -> range:
    """The images that a split takes of the `length` images of its NAME. Raises InputError if there are none."""
    name, start, stop = parse_split(split)
    first, last = boundary(split, start, length, 0), boundary(split, stop, length, length)
    if first >= last:
        raise InputError(f"split {split!r} is empty: {name!r} has {length} images")
    return range(first, last)


def boundary(split: str, text: str, length: int, default: int) -> int:
    """A boundary as an index. Percent are rounded to the nearest image, as TFDS does."""
    if not text:
        return default
    index = round(length * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    if abs(index) > length:
        raise InputError(f"split {split!r} reaches beyond its {length} images")
    return index + length if text.startswith("-") else index


@dataclass(frozen=True)
class Slice(Undecoded):
    """The images `start` up to `stop` of a split."""

    source: Source
    start: int
    stop: int

    @property
    def rows(self) -> range:
        return range(self.start, self.stop)

    def __len__(self) -> int:
        return len(self.rows)

    def encoded(self, index: int) -> Image:
        return self.source.encoded(self.rows[index])

    def name_of(self, index: int) -> str:
        return self.source.name_of(self.rows[index])
