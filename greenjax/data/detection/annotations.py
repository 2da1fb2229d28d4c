"""Reads COCO's instances JSON: images, categories, and objects with boxes and masks.

Every mask becomes run lengths once, when the file is read: whatever cannot be used is found then, and a data set of a
million objects takes some hundred bytes an object in every data worker.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float64, Int32, Int64, UInt8

from greenjax.data.detection import run_lengths
from greenjax.data.detection.run_lengths import Runs
from greenjax.data.encoded import Size
from greenjax.errors import InputError
from greenjax.runtime.files import read_json

PARTS = ("images", "annotations", "categories")
REMEDY = "expected COCO's instances: an object with images, annotations and categories"
FAR = 10  # times the image's longer side: a polygon further away is a mistake, and would take gigabytes


class Objects(NamedTuple):
    """The objects of an image that a detector learns, in pixels of the stored image."""

    size: Size  # of the image
    boxes: Float64[np.ndarray, "n 4"]  # (x0, y0, x1, y1)
    labels: Int32[np.ndarray, " n"]  # 1 to the number of classes
    masks: UInt8[np.ndarray, "n h w"]  # 1 inside the object, 0 outside


@dataclass(frozen=True, eq=False)
class Instances:
    """The content of a file, image by image: the objects of image i are rows first[i] to first[i + 1]."""

    names: list[str]  # of the image files
    ids: Int64[np.ndarray, " images"]
    sizes: Int32[np.ndarray, "images 2"]  # (height, width)
    classes: tuple[str, ...]  # in the order of the file: label i is classes[i - 1]
    category_ids: tuple[int, ...]
    first: Int64[np.ndarray, " bounds"]
    labels: Int32[np.ndarray, " n"]
    boxes: Float64[np.ndarray, "n 4"]  # (x, y, width, height), as in the file
    areas: Float64[np.ndarray, " n"]  # of the masks
    crowds: Bool[np.ndarray, " n"]  # groups of objects, which are not learnt and do not count in an evaluation
    runs: UInt8[np.ndarray, " bytes"]  # compressed run lengths of all masks, one after the other
    starts: Int64[np.ndarray, " starts"]

    def rows(self, image: int) -> range:
        return range(self.first[image], self.first[image + 1])

    def size(self, image: int) -> Size:
        height, width = self.sizes[image].tolist()
        return height, width

    def run_length(self, row: int, image: int) -> Runs:
        """The mask of an object."""
        counts = self.runs[self.starts[row] : self.starts[row + 1]].tobytes()
        return {"size": list(self.size(image)), "counts": counts.decode()}

    def objects(self, image: int) -> Objects:
        """The objects of an image, without crowds. Boxes end at the border of the image."""
        rows, size = [row for row in self.rows(image) if not self.crowds[row]], self.size(image)
        x, y, width, height = self.boxes[rows].T
        sides = np.stack((x, y, x + width, y + height), axis=1)
        boxes = np.clip(sides, 0, (size[1], size[0], size[1], size[0]))
        masks = run_lengths.decoded([self.run_length(row, image) for row in rows], size)
        return Objects(size, boxes, self.labels[rows], masks)

    def counts(self) -> Int64[np.ndarray, " images"]:
        """Objects of every image, without crowds."""
        learnt = np.concatenate(([0], np.cumsum(~self.crowds)))
        return np.diff(learnt[self.first])


class Fault(ValueError):
    """What is wrong with an annotation."""


def read_instances(path: Path) -> Instances:
    """The images and objects of a file. Annotations that cannot be used are left out, and counted in a warning.

    Raises InputError for a file that is none of COCO's instances, or names a category or an image twice or not at all.
    """
    found = read_json(path, dict, REMEDY)
    for part in PARTS:
        if not isinstance(found.get(part), list):
            raise InputError(f"{str(path)!r} has no list {part!r}: {REMEDY}")
    images = listed_once(path, "images", found, dict(id=int, file_name=str, width=int, height=int))
    categories = listed_once(path, "categories", found, dict(id=int, name=str))
    classes = tuple(each["name"] for each in categories.values())
    for name, count in Counter(classes).items():
        if count > 1:
            raise InputError(f"{str(path)!r} has {count} categories {name!r}: expected every name once")
    rows = usable(path, found["annotations"], images, {number: 1 + i for i, number in enumerate(categories)})
    place = {number: i for i, number in enumerate(images)}
    rows.sort(key=lambda row: place[row.image])
    runs = [row.runs for row in rows]
    return Instances(
        [each["file_name"] for each in images.values()],
        np.array(list(images), np.int64),
        np.array([(each["height"], each["width"]) for each in images.values()], np.int32).reshape(-1, 2),
        classes,
        tuple(categories),
        np.searchsorted([place[row.image] for row in rows], np.arange(len(images) + 1)),
        np.array([row.label for row in rows], np.int32),
        np.array([row.box for row in rows], np.float64).reshape(-1, 4),
        np.array([row.area for row in rows], np.float64),
        np.array([row.crowd for row in rows], bool),
        np.frombuffer(b"".join(runs), np.uint8),
        np.cumsum([0, *map(len, runs)]),
    )


def listed_once(path: Path, part: str, found: Mapping[str, Any], fields: Mapping[str, type]) -> dict[int, Any]:
    """The entries of a list by their id. Raises InputError for an entry without one of `fields`, and for equal ids."""
    entries: dict[int, Any] = {}
    for number, entry in enumerate(found[part]):
        for name, kind in fields.items():
            value = entry.get(name) if isinstance(entry, dict) else None
            least = 1 if name in ("width", "height") else None
            if type(value) is not kind or (least and value < least):  # type: ignore[operator]
                wanted = "a text" if kind is str else "a whole number" + ", at least 1" * bool(least)
                raise InputError(f"{str(path)!r} has {name} {value!r} in {part}[{number}]: expected {wanted}")
        if entry["id"] in entries:
            raise InputError(f"{str(path)!r} has id {entry['id']} twice in {part}: expected every id once")
        entries[entry["id"]] = entry
    return entries


# Annotations


class Row(NamedTuple):
    """An annotation that can be used."""

    image: int
    label: int
    box: list[float]
    area: float
    crowd: bool
    runs: bytes


def usable(path: Path, annotations: list[Any], images: Mapping[int, Any], labels: Mapping[int, int]) -> list[Row]:
    """The annotations that can be used; one warning for each kind of fault counts the others, and names the first.

    Raises InputError for a category that the file does not list, and where no annotation of many can be used.
    """
    rows, faults, firsts = [], Counter[str](), {}
    for number, annotation in enumerate(annotations):
        try:
            rows.append(row_of(annotation, images, labels))
        except Fault as fault:
            faults[str(fault)] += 1
            firsts.setdefault(str(fault), annotation.get("id", number) if isinstance(annotation, dict) else number)
        except KeyError as error:
            where = f"{str(path)!r} has category_id {error.args[0]!r} in annotations[{number}]"
            raise InputError(f"{where}: expected one of its categories, {', '.join(map(str, labels))}") from error
    lines = [f"{count:,} with {fault} (first id {firsts[fault]})" for fault, count in faults.most_common()]
    told = f"{str(path)!r}: {faults.total():,} of {len(annotations):,} annotations cannot be used: {'; '.join(lines)}"
    if annotations and not rows:
        raise InputError(told)
    if faults:
        logging.warning("%s", told)
    return rows


def row_of(annotation: Any, images: Mapping[int, Any], labels: Mapping[int, int]) -> Row:
    """An annotation. Raises Fault for one that cannot be used, KeyError for an unknown category."""
    if not isinstance(annotation, dict):
        raise Fault("no fields")
    image, category = (annotation.get(key) for key in ("image_id", "category_id"))
    if type(image) is not int or image not in images:
        raise Fault("an image_id that is not listed")
    if type(category) is not int or category not in labels:
        raise KeyError(category)
    size = images[image]["height"], images[image]["width"]
    box, runs = box_of(annotation.get("bbox"), size), runs_of(annotation.get("segmentation"), size)
    area = annotation.get("area")
    if not isinstance(area, int | float):
        area = run_lengths.area(runs)
    crowd = bool(annotation.get("iscrowd"))
    return Row(image, labels[category], box, float(area), crowd, runs["counts"].encode())


def box_of(box: Any, size: Size) -> list[float]:
    """(x, y, width, height). Raises Fault for a box without area, or without a part inside the image."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise Fault("a bbox that is not [x, y, width, height]")
    x, y, width, height = map(float, box)
    if not all(map(math.isfinite, box)) or width <= 0 or height <= 0:
        raise Fault("a box without area")
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        raise Fault("a box outside of its image")
    return [x, y, width, height]


def runs_of(segmentation: Any, size: Size) -> Runs:
    """The run lengths of a mask, from polygons or run lengths. Raises Fault for a mask without pixels."""
    if isinstance(segmentation, list):
        check_polygons(segmentation, size)
        runs = run_lengths.of_polygons(segmentation, size)
    elif isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            raise Fault("a mask of another size than its image")
        try:
            runs = run_lengths.of_counts(segmentation.get("counts"), size)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise Fault("damaged run lengths") from error
    else:
        raise Fault("no segmentation")
    if not run_lengths.area(runs):
        raise Fault("a mask without pixels")
    return runs


def check_polygons(polygons: list[Any], size: Size) -> None:
    if not polygons:
        raise Fault("an empty polygon")
    for points in polygons:
        if not isinstance(points, list) or not all(isinstance(value, int | float) for value in points):
            raise Fault("a segmentation that is neither polygons nor run lengths")
        if len(points) < 6 or len(points) % 2:
            raise Fault("a polygon of fewer than three points")
        if not all(abs(value) <= FAR * max(size) for value in points):  # NaN is not either
            raise Fault("a polygon far outside of its image")


def ground_truth(instances: Instances, image: int) -> Iterator[dict[str, Any]]:
    """The annotations of an image as COCO has them, with compressed run lengths; crowds too."""
    for row in instances.rows(image):
        yield {
            "id": 1 + row,  # pycocotools takes an object 0 for none
            "image_id": int(instances.ids[image]),
            "category_id": instances.category_ids[instances.labels[row] - 1],
            "bbox": instances.boxes[row].tolist(),
            "area": float(instances.areas[row]),
            "iscrowd": int(instances.crowds[row]),
            "segmentation": instances.run_length(row, image),
        }
