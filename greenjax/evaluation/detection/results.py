"""What a detector finds in the images of a set, as COCO's JSON. Each image counts exactly once."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from greenjax.data.detection import run_lengths
from greenjax.data.detection.batches import ObjectBatch
from greenjax.data.detection.paste import paste
from greenjax.data.encoded import Size
from greenjax.data.sources.objects import WithObjects
from greenjax.errors import InputError
from greenjax.evaluation.checks import Place
from greenjax.runtime.files import replace_text
from greenjax.runtime.processes import gathered, leads

Json = list[dict[str, Any]]


class Results(NamedTuple):
    """The true objects of a set and the detections in it; one list with boxes and one with masks, as COCO wants them.

    Processes that do not lead have none.
    """

    ground_truth: dict[str, Any]
    boxes: Json
    masks: Json


class Found(NamedTuple):
    """The detections in one image, by falling score."""

    boxes: Float[np.ndarray, "n 4"]  # (x0, y0, x1, y1) in pixels of the view
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    masks: Float[np.ndarray, "n m m"]  # probabilities over the boxes


def collect(
    forward: Callable[[Any, Array, Array], Any],
    params: Any,
    batches: Iterable[ObjectBatch],
    place: Place,
    source: WithObjects,
) -> Results:
    """The detections in all valid images of `batches`, which are those of `source` in order.

    `forward(params, images, sizes)` is compiled, and gives a models.detection.Detections; `place` puts arrays on the
    devices. Raises InputError for no images.
    """
    seen, images, truth, boxes, masks = 0, [], [], [], []
    for index, (view, found) in enumerate(outputs(forward, params, batches, place)):
        seen += found is not None
        if found is None or not leads():
            continue
        number, (height, width) = source.image_id(index), source.size(index)
        images.append({"id": number, "file_name": source.name_of(index), "height": height, "width": width})
        truth += source.ground_truth(index)
        for box, mask in as_json(found, view, source, index):
            boxes.append(box)
            masks.append(mask)
    if not seen:
        raise InputError("no image can be used: expected at least 1 (warnings name them)")
    return Results({"images": images, "annotations": truth, "categories": source.categories}, boxes, masks)


def outputs(
    forward: Callable[[Any, Array, Array], Any], params: Any, batches: Iterable[ObjectBatch], place: Place
) -> Iterator[tuple[Size, Found | None]]:
    """The size of every image of the batches in its view, and what is found in it; None where it is not valid.

    The devices compute one batch while the next is read. Each of several processes gives its own rows of a batch, and
    all get the whole batch.
    """
    ahead: tuple[Any, ...] | None = None
    for batch in batches:
        ready, ahead = ahead, (forward(params, place(batch.images), place(batch.sizes)), batch.sizes, batch.valid)
        if ready is not None:
            yield from by_image(*gathered(ready))
    if ahead is not None:
        yield from by_image(*gathered(ahead))


def by_image(
    found: Any, sizes: Int[np.ndarray, "b 2"], valid: Bool[np.ndarray, " b"]
) -> Iterator[tuple[Size, Found | None]]:
    for row, (height, width) in enumerate(sizes.tolist()):
        there = found.valid[row]
        parts = (np.asarray(part[row])[there] for part in (found.boxes, found.scores, found.labels, found.masks))
        yield (height, width), Found(*parts) if valid[row] else None


def as_json(
    found: Found, view: Size, source: WithObjects, index: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each detection in image `index` with its box, and with its mask: in pixels of the stored image.

    Classes that the set does not have are left out. Masks are pasted one by one: a hundred as large as a photograph
    take gigabytes.
    """
    size = source.size(index)
    scale = np.array(size)[::-1] / np.array(view)[::-1]
    boxes = found.boxes.astype(np.float64) * (*scale, *scale)
    for box, score, label, mask in zip(boxes, found.scores.tolist(), found.labels.tolist(), found.masks):
        category = source.category_id(label)
        if category is None:
            continue
        about = {"image_id": source.image_id(index), "category_id": category, "score": score}
        shape = paste(mask[None], box[None], size)[0] > 0.5
        corner, sides = box[:2].tolist(), (box[2:] - box[:2]).tolist()
        yield about | {"bbox": corner + sides}, about | {"segmentation": run_lengths.encoded(shape)}


def write(workdir: Path, name: str, found: Results) -> None:
    """Writes detections_NAME.truth.json, .bbox.json and .segm.json. Raises InputError where they cannot be written."""
    for end, content in zip(("truth", "bbox", "segm"), found):
        replace_text(workdir / f"detections_{name}.{end}.json", json.dumps(content))
