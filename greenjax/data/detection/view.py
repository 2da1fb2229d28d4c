"""The view of an image with its objects: resized by its shorter side, flipped in training, padded to one size."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8
from ml_collections import ConfigDict

from greenjax.data.augment import image_channels, resize, to_channels, uniforms
from greenjax.data.detection.annotations import Objects
from greenjax.data.encoded import Box, DecodeError, Encoded, Image, Size, load

MASK_SIDE = 56  # of the array of a mask, whose box it covers: twice the side of what a mask head gives


@dataclass(frozen=True)
class ObjectView:
    """(image, size, boxes, labels, masks, valid) of an image: uint8 [h, w, c] of the canvas, black on the right and
    below of the true size (height, width), and its largest objects, padded to `most`.

    In training the shorter side and the flip are drawn from (seed, index in the global stream) alone. Masks are 0 or 1,
    1 where the object covers half of a cell; boxes are in pixels of the canvas.
    """

    seed: int
    size: Size  # of the canvas: no side of the image becomes longer
    channels: int
    shorter: tuple[int, ...]  # the sides that the shorter side of an image may get
    flip: bool
    most: int

    @classmethod
    def from_config(cls, config: ConfigDict, training: bool) -> "ObjectView":
        """The training view of a resolved configuration, or the held-out view: at the largest of the sides."""
        shorter = config.detect.shorter_sides or (min(config.image_size),)
        options = (shorter, config.data.flip) if training else ((max(shorter),), False)
        return cls(config.seed, config.image_size, image_channels(config), *options, config.detect.max_objects)

    def __call__(self, image: Image, objects: Objects, index: int) -> tuple[np.ndarray, ...]:
        """Raises DecodeError for an image of another size than its annotations have."""
        drawn, turned = uniforms(self.seed, index, 2)
        shorter = self.shorter[int(drawn * len(self.shorter))]
        found: list[Size] = []

        def whole(size: Size) -> tuple[Box, Size]:
            found.append(size)
            return (0, 0, *size), fitted(size, shorter, self.size)

        pixels, (height, width) = load(image, whole)
        if found[-1] != objects.size:
            name = image.name if isinstance(image, Encoded) else "the image"
            sizes = "{} x {} pixels: expected {} x {}".format(*found[-1], *objects.size)
            raise DecodeError(f"{name} has {sizes}, (height, width), as its annotations have")
        view, flips = to_channels(resize(pixels, (height, width)), self.channels), self.flip and turned < 0.5
        canvas = np.zeros((*self.size, self.channels), np.uint8)
        canvas[:height, :width] = cv2.flip(view, 1).reshape(view.shape) if flips else view
        return canvas, np.array((height, width), np.int32), *self.targets(objects, (height, width), flips)

    def targets(self, objects: Objects, size: Size, flips: bool) -> tuple[np.ndarray, ...]:
        """The boxes, labels and masks of the largest objects, in an image of a new size, and which of them are valid.

        Places without an object have a box of one pixel: whatever is divided by its sides stays finite.
        """
        boxes, labels, masks, valid = no_targets(self.most)
        sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
        chosen = np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[: self.most])
        scale = np.array(size) / objects.size
        for place, row in enumerate(chosen):
            boxes[place] = objects.boxes[row] * (*scale[::-1], *scale[::-1])
            masks[place] = covered(objects.masks[row], objects.boxes[row]) >= 0.5
        labels[: len(chosen)], valid[: len(chosen)] = objects.labels[chosen], True
        if flips:
            boxes[valid, 0::2] = size[1] - boxes[valid, 2::-2]
            masks = np.ascontiguousarray(masks[:, :, ::-1])
        return boxes, labels, masks, valid


def no_targets(most: int) -> tuple[np.ndarray, ...]:
    """Boxes, labels, masks and valid of an image without objects."""
    boxes = np.tile(np.array((0, 0, 1, 1), np.float32), (most, 1))
    masks = np.zeros((most, MASK_SIDE, MASK_SIDE), np.uint8)
    return boxes, np.zeros(most, np.int32), masks, np.zeros(most, bool)


def fitted(size: Size, shorter: int, canvas: Size) -> Size:
    """The size of an image whose shorter side becomes `shorter`, or less, so that it fits on the canvas."""
    scale = min(shorter / min(size), canvas[0] / size[0], canvas[1] / size[1])
    height, width = (max(1, min(most, round(side * scale))) for side, most in zip(size, canvas))
    return height, width


def covered(
    mask: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"], box: Float64[np.ndarray, " 4"]
) -> Float64[np.ndarray, "s s"]:
    """The share of each of s x s equal cells of a box that a mask covers."""
    x0, y0, x1, y1 = box
    top, left, bottom, right = int(y0), int(x0), int(np.ceil(y1)), int(np.ceil(x1))
    total = cv2.integral(mask[top:bottom, left:right], sdepth=cv2.CV_64F)  # of the pixels above and left
    at_edges = between(between(total, y0 - top, y1 - top).T, x0 - left, x1 - left).T
    cell = (y1 - y0) * (x1 - x0) / MASK_SIDE**2
    return np.diff(np.diff(at_edges, axis=0), axis=1) / cell


def between(values: Float64[np.ndarray, "n k"], start: float, stop: float) -> Float64[np.ndarray, "s1 k"]:
    """The rows at the edges of the cells from `start` to `stop`, interpolated linearly."""
    edge = np.linspace(start, stop, MASK_SIDE + 1)
    low = np.minimum(edge.astype(int), len(values) - 2)
    share = (edge - low)[:, None]
    return values[low] * (1 - share) + values[low + 1] * share
