"""Pictures of detections: images with their true objects, and with what a detector finds, with its scores."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from greenjax.data.detection.paste import paste
from greenjax.data.detection.targets import Targets
from greenjax.evaluation.detection.results import Found
from greenjax.evaluation.pictures.canvas import Canvas, coloured, coloured_by, legible

LEAST_SCORE = 0.5  # of a detection that is drawn

_SIDE, _GAP, _HEAD = 320, 8, 24  # pixels: the longer side of a picture, around it, above the first row
_INK = 0.45  # of a mask's colour
_NAME = 16  # characters of the name of a class


def draw_detections(
    path: str | Path,
    images: UInt8[np.ndarray, "n h w c"],
    sizes: Int[np.ndarray, "n 2"],
    truth: Targets,
    found: Sequence[Found],
    names: Sequence[str],
) -> None:
    """Writes a PNG: each image with its true objects on the left and its detections of LEAST_SCORE on the right.

    `sizes` are the true (height, width) of the images, `names` those of the classes. Raises OSError.
    """
    pairs = []
    for row, (image, (height, width)) in enumerate(zip(coloured(images), sizes.tolist())):
        valid = truth.valid[row]
        real = Found(truth.boxes[row][valid], np.ones(valid.sum()), truth.labels[row][valid], truth.masks[row][valid])
        sure = found[row].scores >= LEAST_SCORE
        seen = Found(*(part[sure] for part in found[row]))
        pairs.append([drawn(image[:height, :width], objects) for objects in (real, seen)])
    _lay_out(Path(path), pairs, names)


Drawn = tuple[UInt8[np.ndarray, "_ _ 3"], Found]  # a picture, and its objects in pixels of the picture


def drawn(image: UInt8[np.ndarray, "h w 3"], objects: Found) -> Drawn:
    """The image, its longer side _SIDE pixels long, with a box and a tinted mask for every object."""
    scale = _SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    picture = cv2.resize(image, (width, height), interpolation=how).astype(np.float64)
    boxes = objects.boxes * scale
    for box, colour, mask in zip(boxes, colours(objects.labels), objects.masks):
        inside = paste(mask[None].astype(np.float32), box[None], (height, width))[0] > 0.5
        picture[inside] = (1 - _INK) * picture[inside] + _INK * colour
        (x0, y0), (x1, y1) = box[:2].round().astype(int).tolist(), (box[2:].round().astype(int) - 1).tolist()
        cv2.rectangle(picture, (x0, y0), (x1, y1), colour.tolist(), 1)
    return picture.round().astype(np.uint8), objects._replace(boxes=boxes)


def colours(labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """A hue for every class; those of neighbours differ."""
    return coloured_by("hsv", labels * 0.618 % 1).astype(np.float64)


def _lay_out(path: Path, pairs: Sequence[Sequence[Drawn]], names: Sequence[str]) -> None:
    """A pair a row, or two for more than three images."""
    across = 2 if len(pairs) > 3 else 1
    cell, rows = _SIDE + _GAP, -(-len(pairs) // across)
    tall = max((picture.shape[0] for pair in pairs for picture, _ in pair), default=0) + _GAP
    canvas = Canvas(across * (2 * cell + _GAP) + _GAP, _HEAD + rows * tall)
    named = legible(names, _NAME)
    for index, pair in enumerate(pairs):
        row, block = divmod(index, across)
        for column, (picture, objects) in enumerate(pair):
            left, top = _GAP + block * (2 * cell + _GAP) + column * cell, _HEAD + row * tall
            canvas.picture(picture, left, top)
            if row == 0:
                canvas.text(left, 6, ("objects", f"detections with a score of {LEAST_SCORE:g} and above")[column])
            for (x, y), score, label in zip(objects.boxes[:, :2].tolist(), objects.scores, objects.labels):
                said = named[label - 1] + (f" {score:.2f}" if column else "")
                ground = dict(facecolor="black", edgecolor="none", pad=0.8)
                where = "bottom" if y >= 12 else "top"
                canvas.text(left + x, top + y, said, 6, color="white", va=where, bbox=ground)
    canvas.save(path)
