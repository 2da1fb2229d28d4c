"""Anchors: the boxes that proposals are coded against, around every place of every level of the pyramid. NumPy only."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

RATIOS = (0.5, 1.0, 2.0)  # height / width


def base_anchors(size: int) -> Float32[np.ndarray, "ratios 4"]:
    """Boxes of the area size * size around the origin, one a ratio, on whole pixels as in torchvision."""
    height = np.sqrt(np.asarray(RATIOS, np.float32))
    sides = np.stack([1 / height, height], axis=1) * np.float32(size)
    return (np.concatenate([-sides, sides], axis=1) / 2).round()


def anchors(
    image: tuple[int, int], grids: Sequence[tuple[int, int]], sizes: Sequence[int]
) -> list[Float32[np.ndarray, "n 4"]]:
    """The anchors of every level in the order (row, column, ratio).

    `image` and `grids` are (height, width), of the padded image in pixels and of the levels. As in torchvision, a
    level's stride is image // grid, and an anchor lies around the first pixel of its place.
    """
    levels = []
    for (rows, columns), size in zip(grids, sizes, strict=True):
        y, x = np.meshgrid(
            np.arange(rows) * (image[0] // rows), np.arange(columns) * (image[1] // columns), indexing="ij"
        )
        places = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype(np.float32)
        levels.append((places + base_anchors(size)).reshape(-1, 4))
    return levels
