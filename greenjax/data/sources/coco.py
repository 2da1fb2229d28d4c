"""COCO: image files, and a JSON file with the boxes, classes and masks of their objects."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64
from ml_collections import ConfigDict

from greenjax.data.detection.annotations import Instances, Objects, ground_truth, read_instances
from greenjax.data.encoded import Encoded, Size
from greenjax.data.listing import parts_of
from greenjax.data.sources.folder import FolderSource, paths_at
from greenjax.data.sources.names import Names, hashed_order
from greenjax.data.sources.objects import ObjectSource
from greenjax.errors import InputError, refuse
from greenjax.runtime.classes import Classes
from greenjax.runtime.files import expanded

JSON = ("annotations/instances_{}.json", "annotations/{}.json", "{}.json", "{}/_annotations.coco.json")
FOLDERS = ("{}", "images", ".")  # of the images, below data.path


@dataclass(frozen=True, eq=False)
class CocoSource(ObjectSource, FolderSource):
    """The images that the JSON file of a split lists, in the order of a hash of their names, as in a folder."""

    instances: Instances
    order: Int64[np.ndarray, " n"]  # the place of every image in the file

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        if not values["data.path"]:
            refuse(values, "data.path", "a directory with annotations/instances_SPLIT.json, for data.source 'coco'")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "CocoSource":
        root = expanded(data.path)
        files = [root / pattern.format(split) for pattern in JSON]
        path = next((path for path in files if path.is_file()), None)
        if path is None:
            expected = ", ".join(pattern.format(split) for pattern in JSON)
            raise InputError(f"{str(root)!r} has no annotations of split {split!r}: expected one of {expected}")
        instances = read_instances(path)
        if not instances.names:
            raise InputError(f"{str(path)!r} lists no images: expected at least one")
        order = hashed_order(instances.names)
        names = [instances.names[i] for i in order]
        return cls(str(image_folder(root, split, path, names)), Names.of(names), instances, order)

    @property
    def classes(self) -> Classes:
        return self.instances.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        return self.instances.category_ids

    def annotated(self, index: int) -> tuple[Encoded, Objects]:
        return self.encoded(index), self.instances.objects(int(self.order[index]))

    def counts(self) -> Int64[np.ndarray, " n"]:
        return self.instances.counts()[self.order]

    def size(self, index: int) -> Size:
        return self.instances.size(int(self.order[index]))

    def image_id(self, index: int) -> int:
        return int(self.instances.ids[self.order[index]])

    def ground_truth(self, index: int) -> list[dict[str, Any]]:
        return list(ground_truth(self.instances, int(self.order[index])))

    def parts(self) -> Iterator[bytes]:
        yield from super().parts()
        for field in fields(self.instances):
            yield from parts_of(getattr(self.instances, field.name))

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        return len(paths_at(self, rows) & paths_at(other, others))


def image_folder(root: Path, split: str, path: Path, names: list[str]) -> Path:
    """The folder with all images of a split. Raises InputError where some are missing from each."""
    missing = {}
    for folder in (root / pattern.format(split) for pattern in FOLDERS):
        below = {parent: files_in(folder / parent) for parent in {os.path.dirname(name) for name in names}}
        missing[folder] = [name for name in names if os.path.basename(name) not in below[os.path.dirname(name)]]
        if not missing[folder]:
            return folder
    folder = min(missing, key=lambda folder: len(missing[folder]))
    found = f"{len(missing[folder]):,} of the {len(names):,} images of {str(path)!r} are missing"
    raise InputError(f"{found}: expected {str(folder / missing[folder][0])!r}")


def files_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
