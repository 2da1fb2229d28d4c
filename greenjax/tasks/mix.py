"""Mixup and CutMix of images and their targets, on the device, inside the update."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

Images = Num[Array, "b h w c"]


def one_hot(labels: Int[Array, " b"], classes: int, smoothing: float = 0.0) -> Float[Array, "b classes"]:
    """Targets that sum to 1: 1 - smoothing for the label, plus `smoothing` spread evenly over all classes.

    Source: arXiv 1512.00567, section 7.
    """
    return (1 - smoothing) * jax.nn.one_hot(labels, classes, dtype=jnp.float32) + smoothing / classes


def mix(
    images: Images,
    targets: Float[Array, "b classes"],
    key: Key[Array, ""],
    *,
    mixup: float,
    cutmix: float,
    prob: float = 1.0,
    switch: float = 0.5,
) -> tuple[Images, Float[Array, "b classes"]]:
    """Mixes image i with its partner, image b - 1 - i, and their targets by the same share as their pixels.

    `mixup` and `cutmix` are the alphas of Beta(alpha, alpha); 0 turns one off. Each image draws whether it is mixed
    (with probability `prob`), by which of the two (CutMix with probability `switch` where both are on), its share and
    its box. Images keep their dtype; integers are rounded.
    Sources: mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899).
    """
    if not (mixup or cutmix) or not prob:
        return images, targets
    b, height, width, _ = images.shape
    own = own_weights(key, (b, height, width), mixup, cutmix, prob, switch)
    share = own.mean(axis=(1, 2))[:, None]
    pixels = _blend(images.astype(jnp.float32), own[..., None])
    if jnp.issubdtype(images.dtype, jnp.integer):
        pixels = jnp.round(pixels)
    return pixels.astype(images.dtype), _blend(targets, share)


def own_weights(
    key: Key[Array, ""], shape: tuple[int, int, int], mixup: float, cutmix: float, prob: float, switch: float
) -> Float[Array, "b h w"]:
    """The share of the image itself in each of its mixed pixels; the rest is its partner's."""
    keys = jax.random.split(key, 5)
    b = shape[0]
    each = (b, 1, 1)
    mixed = jax.random.bernoulli(keys[0], jnp.float32(prob), each)
    weights = jax.random.beta(keys[1], mixup, mixup, each, jnp.float32) if mixup else jnp.ones(each, jnp.float32)
    if cutmix:
        cuts = jax.random.bernoulli(keys[2], jnp.float32(switch if mixup else 1), each)
        boxes = random_boxes(keys[3], jax.random.beta(keys[4], cutmix, cutmix, (b,), jnp.float32), shape)
        weights = jnp.where(cuts, jnp.where(boxes, 0.0, 1.0), weights)
    return jnp.broadcast_to(jnp.where(mixed, weights, 1.0), shape)


def random_boxes(key: Key[Array, ""], outside: Float[Array, " b"], shape: tuple[int, int, int]) -> Bool[Array, "b h w"]:
    """Masks of boxes, True inside, with the image's proportions, around a random pixel and cut at the borders.

    `outside` is the share of the image that an uncut box leaves. Comparisons make masks of one shape for all boxes.
    """
    b, height, width = shape
    side = jnp.sqrt(1 - outside)
    keys = jax.random.split(key)
    rows = _interval(jax.random.randint(keys[0], (b,), 0, height, jnp.int32), side * height, height)
    columns = _interval(jax.random.randint(keys[1], (b,), 0, width, jnp.int32), side * width, width)
    return rows[:, :, None] & columns[:, None, :]


def _interval(centre: Int[Array, " b"], length: Float[Array, " b"], limit: int) -> Bool[Array, "b n"]:
    """Masks over `limit` places, True in an interval around `centre` that is `length` places long, rounded down."""
    first = centre - length.astype(jnp.int32) // 2
    last = first + length.astype(jnp.int32)
    places = jnp.arange(limit, dtype=jnp.int32)[None]
    return (places >= first[:, None]) & (places < last[:, None])


def _blend(x: Float[Array, "b *rest"], own: Float[Array, "b *ones"]) -> Float[Array, "b *rest"]:
    """A share of 0 takes nothing: 0 times a missing pixel, NaN, would be NaN."""
    other = x[::-1]
    return jnp.where(own == 1, x, jnp.where(own == 0, other, own * x + (1 - own) * other))
