"""Boxes (x0, y0, x1, y1) in pixels: areas, overlaps, clipping, and their codes relative to other boxes."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LARGEST = math.log(1000 / 16)  # of a coded width or height: a box grows by 62.5 at most


def areas(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlaps(a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"]) -> Float[Array, "*b n m"]:
    """The intersection over the union of every pair; 0 for two boxes without an area."""

    def shared(axis: int) -> Float[Array, "*b n m"]:
        low = jnp.maximum(a[..., :, None, axis], b[..., None, :, axis])
        high = jnp.minimum(a[..., :, None, axis + 2], b[..., None, :, axis + 2])
        return jnp.maximum(high - low, 0)

    both = shared(0) * shared(1)
    union = areas(a)[..., :, None] + areas(b)[..., None, :] - both
    return both / jnp.where(union > 0, union, 1)


def clipped(boxes: Float[Array, "b *n 4"], sizes: Int[Array, "b 2"]) -> Float[Array, "b *n 4"]:
    """Boxes cut at the borders of their images; `sizes` are (height, width)."""
    borders = jnp.tile(sizes[:, ::-1], 2).astype(boxes.dtype)
    return jnp.clip(boxes, 0, borders.reshape(len(boxes), *[1] * (boxes.ndim - 2), 4))


def at_least(boxes: Float[Array, "*b 4"], side: float) -> Bool[Array, "*b"]:
    """Which boxes have no side shorter than `side`."""
    return (boxes[..., 2] - boxes[..., 0] >= side) & (boxes[..., 3] - boxes[..., 1] >= side)


def _centres_and_sides(boxes: Float[Array, "*b 4"]) -> tuple[Float[Array, "*b 2"], Float[Array, "*b 2"]]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides


def encoded(
    boxes: Float[Array, "*#b 4"], references: Float[Array, "*#b 4"], weights: Sequence[float]
) -> Float[Array, "*#b 4"]:
    """The offsets (x, y) of the centre in sides of the reference and the logarithms of the sides' ratios (w, h), times
    `weights`. Source: R-CNN (arXiv 1311.2524), appendix C."""
    (centre, sides), (origin, unit) = _centres_and_sides(boxes), _centres_and_sides(references)
    codes = jnp.concatenate([(centre - origin) / unit, jnp.log(sides / unit)], axis=-1)
    return codes * _like(weights, codes)


def decoded(
    codes: Float[Array, "*#b 4"], references: Float[Array, "*#b 4"], weights: Sequence[float]
) -> Float[Array, "*#b 4"]:
    """The boxes that `encoded` gives the codes of; no side is more than 62.5 times as long as its reference's."""
    codes, (origin, unit) = codes / _like(weights, codes), _centres_and_sides(references)
    centre = codes[..., :2] * unit + origin
    half = 0.5 * jnp.exp(jnp.minimum(codes[..., 2:], LARGEST)) * unit
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def _like(weights: Sequence[float], codes: Float[Array, "*b 4"]) -> Float[Array, "..."]:
    return jnp.asarray(weights, codes.dtype).reshape((1,) * (codes.ndim - 1) + (4,))
