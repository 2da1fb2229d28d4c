"""RoIAlign: means of a feature map, or of a mask, over the cells of a grid in a box.

Source: Mask R-CNN (arXiv 1703.06870), section 3, with the conventions of torchvision: pixel i lies at i (`aligned` is
False), positions up to one pixel beyond the border read the border, and those further away zeros. The mean of samples
on a grid, each interpolated linearly along rows and columns, is a product of one matrix for rows and one for columns.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from greenjax.models.detection.boxes import areas

SAMPLES = 2  # along each side of a cell, for features
FEW = 1 << 14  # places of all levels: those of an image of some 440 x 440 pixels
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
    """The features of every box, from the level of the pyramid that fits its size. No gradient goes to the boxes.

    The products over whole levels are many times faster on a CPU, and compute the same bits in every run, but their
    cost grows with the levels. A pyramid of more than FEW places is read by one gather.
    """
    boxes = jax.lax.stop_gradient(boxes)
    few = sum(x.shape[1] * x.shape[2] for x in pyramid) <= FEW
    return (_by_products if few else _by_gather)(pyramid, boxes, strides, cells)


def _by_products(
    pyramid: Sequence[Float[Array, "b _ _ c"]], boxes: Float[Array, "b n 4"], strides: Sequence[int], cells: int
) -> Float[Array, "b n cells cells c"]:
    level, parts = levels_of(boxes, strides), []
    for i, (x, stride) in enumerate(zip(pyramid, strides, strict=True)):
        _, h, w, _ = x.shape
        scaled = boxes / stride
        rows, columns = (
            mean_weights(*cell_samples(scaled[..., axis], scaled[..., axis + 2], cells, SAMPLES, SAMPLES), side)
            for axis, side in ((1, h), (0, w))
        )
        rows *= (level == i)[..., None, None]
        parts.append(_products(x, rows.astype(x.dtype), columns.astype(x.dtype)))
    return sum(parts[1:], parts[0])  # a box has weights in one level only


def _products(
    x: Float[Array, "b h w c"], rows: Float[Array, "b n p h"], columns: Float[Array, "b n q w"]
) -> Float[Array, "b n p q c"]:
    """rows @ x @ columns.T, of every channel."""
    b, h, w, c = x.shape
    _, n, p, _ = rows.shape
    y = jnp.matmul(rows.reshape(b, n * p, h), x.reshape(b, h, w * c)).reshape(b, n, p, w, c)
    return jnp.matmul(jnp.broadcast_to(columns[:, :, None], (b, n, p, *columns.shape[2:])), y)


def _by_gather(
    pyramid: Sequence[Float[Array, "b _ _ c"]], boxes: Float[Array, "b n 4"], strides: Sequence[int], cells: int
) -> Float[Array, "b n cells cells c"]:
    heights, widths = np.array([x.shape[1:3] for x in pyramid]).T
    starts = np.cumsum(heights * widths) - heights * widths  # of the levels, among the places of all
    level = levels_of(boxes, strides)
    height, width, start, stride = (jnp.asarray(x)[level] for x in (heights, widths, starts, np.array(strides)))
    scaled = boxes / stride[..., None]
    (row, row_weight), (column, column_weight) = (
        _taps(cell_samples(scaled[..., axis], scaled[..., axis + 2], cells, SAMPLES, SAMPLES)[0], side)
        for axis, side in ((1, height), (0, width))
    )
    row = start[..., None, None] + row * width[..., None, None]
    place = row[:, :, :, None, :, None] + column[:, :, None, :, None, :]  # [b, n, p, q, taps, taps]
    weight = row_weight[:, :, :, None, :, None] * column_weight[:, :, None, :, None, :]
    places = jnp.concatenate([rearrange(x, "b h w c -> b (h w) c") for x in pyramid], axis=1)
    values = jax.vmap(lambda x, place: x[place])(places, place)
    return (values * weight[..., None].astype(values.dtype)).sum(axis=(4, 5))


def _taps(
    position: Float[Array, "b n cells s"], side: Int[Array, "b n"]
) -> tuple[Int[Array, "b n cells 2*s"], Float[Array, "b n cells 2*s"]]:
    """The two pixels of an axis that each sample lies between, and their weights in the mean over a cell."""
    last = side[..., None, None] - 1
    inside = (position >= -1) & (position <= last + 1)
    position = jnp.clip(position, 0, last)
    low = jnp.floor(position).astype(jnp.int32)
    upper = position - low
    weights = jnp.concatenate([1 - upper, upper], axis=-1) * jnp.tile(inside, 2) / position.shape[-1]
    return jnp.concatenate([low, jnp.minimum(low + 1, last)], axis=-1), weights


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
