"""`Targets`: the objects of a batch of images, as a detector takes them. NumPy only."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Num

from greenjax.errors import InputError


class Targets(NamedTuple):
    """The objects of every image, padded to n; arrays of NumPy or JAX.

    Boxes and regions are (x0, y0, x1, y1) in pixels of the image as the model gets it. A mask has any resolution: its
    array covers its region. For masks cropped to their objects, regions are the boxes; for masks as large as the image,
    the whole image.
    """

    boxes: Float32[Any, "b n 4"]
    labels: Int32[Any, "b n"]  # 1 to num_classes; 0 where not valid
    masks: Num[Any, "b n mh mw"]  # 1 inside the object, 0 outside
    regions: Float32[Any, "b n 4"]
    valid: Bool[Any, "b n"]


def packed(targets: Sequence[Mapping[str, Any]], size: tuple[int, int], num_classes: int) -> Targets:
    """The targets of torchvision, a dictionary an image: boxes [n, 4], labels [n], masks [n, h, w] as large as the
    image, or as `size`, (height, width) of the batch.

    n is padded to a power of two, so that few numbers of objects compile a new program. Raises InputError for others.
    """
    checked = [_checked(i, each, size, num_classes) for i, each in enumerate(targets)]
    most = max((len(labels) for _, labels, _ in checked), default=0)
    n, b = 1 << max(most - 1, 0).bit_length(), len(checked)
    blank = np.zeros((b, n, 4), np.float32)
    out = Targets(blank, np.zeros((b, n), np.int32), np.zeros((b, n, *size), np.float32), blank + 0, blank[..., 0] > 0)
    for i, (boxes, labels, masks) in enumerate(checked):
        count, margins = len(labels), [(0, side - own) for side, own in zip(size, masks.shape[1:])]
        out.boxes[i, :count], out.labels[i, :count], out.valid[i, :count] = boxes, labels, True
        # Beyond the image's own border a mask goes on as at the border.
        out.masks[i, :count] = np.pad(masks, [(0, 0), *margins], mode="edge") if count else 0
        out.regions[i, :count] = 0, 0, size[1], size[0]
    return out


def _checked(i: int, target: Mapping[str, Any], size: tuple[int, int], num_classes: int) -> tuple[np.ndarray, ...]:
    def refuse(name: str, expected: str) -> None:
        raise InputError(f"targets[{i}][{name!r}] is not right: expected {expected}")

    for name in ("boxes", "labels", "masks"):
        if name not in target:
            raise InputError(f"targets[{i}] has no {name!r}: expected boxes, labels and masks")
    boxes, labels, masks = (np.asarray(target[name]) for name in ("boxes", "labels", "masks"))
    n = labels.shape[0] if labels.ndim == 1 else -1
    if n < 0 or (n and not (labels.min() >= 1 and labels.max() <= num_classes)):
        refuse("labels", f"[n] whole numbers from 1 to {num_classes}")
    if boxes.shape != (n, 4) or (n and not (boxes[:, 2:] > boxes[:, :2]).all()):
        refuse("boxes", f"[{n}, 4], (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
    if masks.ndim != 3 or len(masks) != n or masks.shape[1] > size[0] or masks.shape[2] > size[1]:
        refuse("masks", f"[{n}, h, w] with (h, w) up to {size}")
    return boxes, labels, masks
