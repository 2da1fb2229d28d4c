"""From the mask of a box to the mask of an image. NumPy only."""

import numpy as np
from jaxtyping import Float, Float32


def paste(
    masks: Float[np.ndarray, "n m m"], boxes: Float[np.ndarray, "n 4"], size: tuple[int, int]
) -> Float32[np.ndarray, "n h w"]:
    """The probability of each mask at every pixel of an image of `size`, (height, width); 0 outside of its box.

    Boxes are (x0, y0, x1, y1) in pixels. As torchvision's `paste_masks_in_image`: a mask gets a border of zeros, its
    box grows in proportion, and the mask is interpolated linearly over the whole pixels of the box.
    """
    side = masks.shape[1] + 2
    boxes = np.asarray(boxes, np.float32)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32(side / masks.shape[1])
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    low, high = ((centre + sign * half).astype(np.int64).tolist() for sign in (-1, 1))  # cut towards zero
    out = np.zeros((len(masks), *size), np.float32)
    for image, mask, (x0, y0), (x1, y1) in zip(out, np.pad(masks, [(0, 0), (1, 1), (1, 1)]), low, high):
        (rows, row_weights), (columns, column_weights) = (
            _axis(start, stop, side, pixels) for start, stop, pixels in ((y0, y1, size[0]), (x0, x1, size[1]))
        )
        image[rows, columns] = row_weights @ mask @ column_weights.T
    return out


def _axis(start: int, stop: int, side: int, pixels: int) -> tuple[slice, Float32[np.ndarray, "p side"]]:
    """The pixels of an image that the pixels from `start` to `stop` of a box cover, and what they take of a mask."""
    first, last = max(start, 0), max(min(stop + 1, pixels), 0)
    length = max(stop - start + 1, 1)
    position = np.maximum((np.arange(first, last) - start + 0.5) * (side / length) - 0.5, 0)
    weights = 1 - np.abs(np.minimum(position, side - 1)[:, None] - np.arange(side))
    return slice(first, max(first, last)), np.maximum(weights, 0).astype(np.float32)
