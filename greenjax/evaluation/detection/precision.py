"""Average precision by COCO's rules: pycocotools computes it."""

import io
from contextlib import redirect_stdout
from typing import Any

from pycocotools import coco, cocoeval

from greenjax.evaluation.detection.results import Json, Results

_COCO: Any = coco.COCO  # their types are narrower than what they take
_COCOeval: Any = cocoeval.COCOeval
# The first six numbers of pycocotools: over overlaps of 0.5 to 0.95, at 0.5, at 0.75, and by the area of the objects.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def average_precision(found: Results) -> dict[str, float]:
    """box_ap, box_ap50, ..., mask_ap_large, from 0 to 1; NaN where a set has no objects of these areas."""
    metrics: dict[str, float] = {}
    with redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        truth = indexed(found.ground_truth)
        for name, kind, detections in (("box", "bbox", found.boxes), ("mask", "segm", found.masks)):
            evaluation = _COCOeval(truth, loaded(truth, detections), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for key, value in zip(NAMES, evaluation.stats):
                metrics[f"{name}_{key}"] = float(value) if value >= 0 else float("nan")
    return metrics


def indexed(dataset: dict[str, Any]) -> Any:
    """A pycocotools.coco.COCO of the content of a file."""
    found = _COCO()
    found.dataset = dataset
    found.createIndex()
    return found


def loaded(truth: Any, detections: Json) -> Any:
    """The detections as pycocotools loads them from a file; of an empty file it reads the first entry."""
    if not detections:
        return indexed(truth.dataset | {"annotations": []})
    return truth.loadRes([dict(each) for each in detections])  # it adds fields
