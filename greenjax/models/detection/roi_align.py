"""RoIAlign: means of a feature map, or of a mask, over the cells of a grid in a box.

Source: Mask R-CNN (arXiv 1703.06870), section 3, with the conventions of torchvision: pixel i lies at i (`aligned` is
False), positions up to one pixel beyond the border read the border, and those further away zeros. The mean of samples
on a grid, each interpolated linearly along rows and columns, is a product of one matrix for rows and one for columns.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from greenjax.models.detection.boxes import areas

SAMPLES = 2  # along each side of a cell, for features
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4  # a box of 224 x 224 pixels reads the level of stride 2 ** 4


def levels_of(boxes: Float[Array, "*b 4"], strides: Sequence[int]) -> Int[Array, "*b"]:
    """The level of the pyramid that each box reads. Source: FPN (arXiv 1612.03144), equation 1."""
    first, last = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    level = jnp.floor(CANONICAL_LEVEL + jnp.log2(jnp.sqrt(areas(boxes)) / CANONICAL_SIDE) + 1e-6)
    return jnp.clip(level, first, last).astype(jnp.int32) - first


def cell_samples(
    low: Float[Array, "*b"], high: Float[Array, "*b"], cells: int, most: int, number: Int[Array, "*b"] | int
) -> tuple[Float[Array, "*b cells most"], Bool[Array, "*b 1 most"]]:
    """The positions of `number` samples a cell, along one axis, and which of the `most` places hold one."""
    side = (jnp.maximum(high - low, 1) / cells)[..., None, None]
    cell = jnp.arange(cells, dtype=low.dtype).reshape((1,) * low.ndim + (cells, 1))
    sample = jnp.arange(most).reshape((1,) * (low.ndim + 1) + (most,))
    number = jnp.broadcast_to(number, low.shape)[..., None, None]
    return low[..., None, None] + cell * side + (sample + 0.5) * side / number, sample < number


def mean_weights(
    position: Float[Array, "*b cells s"], valid: Bool[Array, "*#b 1 s"], pixels: int
) -> Float[Array, "*b cells pixels"]:
    """The weight of every pixel of an axis in the mean over the samples of each cell."""
    inside = valid & (position >= -1) & (position <= pixels)
    position = jnp.clip(position, 0, pixels - 1)[..., None]
    pixel = jnp.arange(pixels, dtype=position.dtype).reshape((1,) * (position.ndim - 1) + (pixels,))
    weights = jnp.maximum(1 - jnp.abs(position - pixel), 0) * inside[..., None]
    return weights.sum(axis=-2) / valid.sum(axis=-1, keepdims=True)


def roi_align(
    pyramid: Sequence[Float[Array, "b _ _ c"]], boxes: Float[Array, "b n 4"], strides: Sequence[int], cells: int
) -> Float[Array, "b n cells cells c"]:
    """The features of every box, from the level of the pyramid that fits its size. No gradient goes to the boxes."""
    boxes = jax.lax.stop_gradient(boxes)
    level, parts = levels_of(boxes, strides), []
    for i, (x, stride) in enumerate(zip(pyramid, strides, strict=True)):
        rows, columns = (
            mean_weights(
                *cell_samples(boxes[..., axis] / stride, boxes[..., axis + 2] / stride, cells, SAMPLES, SAMPLES), side
            )
            for axis, side in ((1, x.shape[1]), (0, x.shape[2]))
        )
        rows *= (level == i)[..., None, None]
        parts.append(_pooled(x, rows.astype(x.dtype), columns.astype(x.dtype)))
    return sum(parts[1:], parts[0])  # a box has weights in one level only


def _pooled(
    x: Float[Array, "b h w c"], rows: Float[Array, "b n p h"], columns: Float[Array, "b n q w"]
) -> Float[Array, "b n p q c"]:
    """rows @ x @ columns.T, of every channel."""
    b, h, w, c = x.shape
    _, n, p, _ = rows.shape
    y = jnp.matmul(rows.reshape(b, n * p, h), x.reshape(b, h, w * c)).reshape(b, n, p, w, c)
    columns = jnp.broadcast_to(columns[:, :, None], (b, n, p, *columns.shape[2:]))
    return jnp.matmul(columns, y)


def mask_targets(
    masks: Float[Array, "n mh mw"],
    regions: Float[Array, "n 4"],
    boxes: Float[Array, "n 4"],
    cells: int,
    image: tuple[int, int],
) -> Float[Array, "n cells cells"]:
    """What each mask, whose array covers its region of the image, is inside a box: means over as many samples a cell
    as it has pixels of the image, (height, width). Source: torchvision's `project_masks_on_boxes`."""
    sides = []
    for axis, pixels, side in ((1, image[0], masks.shape[1]), (0, image[1], masks.shape[2])):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        number = jnp.ceil(jnp.maximum(high - low, 1) / cells).astype(jnp.int32)
        position, valid = cell_samples(low, high, cells, -(-pixels // cells), number)
        start, end = regions[:, axis, None, None], regions[:, axis + 2, None, None]
        inside = (position + 0.5 - start) * (side / (end - start)) - 0.5
        sides.append(mean_weights(inside, valid, side))
    return jnp.einsum("npy,nyx,nqx->npq", sides[0], masks, sides[1])
