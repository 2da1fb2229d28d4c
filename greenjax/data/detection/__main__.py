"""Writes COCO's JSON for images whose objects are numbered in the pixels of mask files, as those of Penn-Fudan are.

    greenjax data detection --path DIR --images PNGImages --masks PedMasks --name pedestrian

writes DIR/annotations/instances_all.json. The mask of DIR/PNGImages/A.png is DIR/PedMasks/A.png or A_mask.png, of the
same size, with one channel: 0 is background, and every other value an object of the class --name. A mask of 1 bit a
pixel has one object. Masks belong to upright images: photographs are turned by their EXIF data, masks are not.
`python -m greenjax.data.detection` does the same.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Integer

from greenjax.config import flags
from greenjax.data.detection import run_lengths
from greenjax.data.sources.image_files import find_images
from greenjax.data.tiff import ORIENTATION, TRANSPOSED
from greenjax.errors import InputError, in_a_line
from greenjax.runtime.console import say
from greenjax.runtime.files import expanded, replace_text


def main(argv: list[str]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    prog = flags.program(argv, "greenjax.data.detection")
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=raw)
    for option, meaning in (
        ("path", "directory of the data set"),
        ("images", "folder of the images in it"),
        ("masks", "folder of the masks in it"),
        ("name", "class of all objects"),
    ):
        parser.add_argument(f"--{option}", required=True, help=meaning)
    given = parser.parse_args(argv[1:])
    try:
        root = expanded(given.path)
        found = instances(root, given.images, given.masks, given.name)
        path = root / "annotations" / "instances_all.json"
        replace_text(path, json.dumps(found))
        say(f"{path}: {len(found['images']):,} images, {len(found['annotations']):,} objects")
    except InputError as error:
        sys.exit(f"{prog}: {error}")


def instances(root: Path, images: str, masks: str, name: str) -> dict[str, Any]:
    """The content of the JSON. Raises InputError where an image has no mask, or one of another kind."""
    names = find_images(root / images)
    if not names:
        raise InputError(f"{str(root / images)!r} has no images: expected some")
    entries, annotations = [], []
    for number, image in enumerate(names, 1):
        mask = read_mask(root / images / image, root / masks / image)
        height, width = mask.shape
        entries.append({"id": number, "file_name": f"{images}/{image}", "height": height, "width": width})
        for value in np.unique(mask[mask > 0]):
            runs = run_lengths.encoded(mask == value)
            what = {"bbox": run_lengths.box(runs), "area": run_lengths.area(runs), "iscrowd": 0, "segmentation": runs}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1} | what)
    return {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": name}]}


def read_mask(image: Path, beside: Path) -> Integer[np.ndarray, "h w"]:
    """The mask of an image; `beside` is the path that has its name in the folder of masks."""
    candidates = [beside.with_name(f"{beside.stem}{end}.png") for end in ("", "_mask")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise InputError(f"{str(image)!r} has no mask: expected {' or '.join(map(repr, map(str, candidates)))}")
    size = of_image(image, upright_size)
    pixels = of_image(path, np.asarray)  # of a palette the numbers, not the colours
    if pixels.ndim != 2 or pixels.shape[::-1] != size:
        raise InputError(f"mask {str(path)!r} has shape {pixels.shape}: expected {size[::-1]}, with a number an object")
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def upright_size(picture: PIL.Image.Image) -> tuple[int, int]:
    """Width and height of an image that is turned as its EXIF data say. Reads no pixels."""
    width, height = picture.size
    return (height, width) if picture.getexif().get(ORIENTATION) in TRANSPOSED else (width, height)


def of_image(path: Path, take: Callable[[PIL.Image.Image], Any]) -> Any:
    """What `take` returns of the image in a file. Raises InputError where it cannot be read."""
    try:
        with PIL.Image.open(path) as image:
            return take(image)
    except Exception as error:  # a damaged file has Pillow raise errors of many classes
        raise InputError(f"{str(path)!r} cannot be read as an image: {in_a_line(error)}") from error


if __name__ == "__main__":
    main(sys.argv)
