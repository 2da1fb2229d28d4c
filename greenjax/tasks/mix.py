"""Mixup and CutMix: every image is mixed with its partner, and so are their targets. On the device, inside the step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

Images = Float[Array, "b h w c"] | UInt8[Array, "b h w c"]


def one_hot(labels: Int[Array, " b"], classes: int, smoothing: float = 0.0) -> Float[Array, "b classes"]:
    """Targets that sum to one: 1 - smoothing for the label, and `smoothing` spread evenly over all classes.

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
    """Images and targets mixed with those of the partner: image i with image b - 1 - i.

    `mixup` and `cutmix` are the alphas of Beta(alpha, alpha), 0 = off. Each image draws for itself whether it is
    mixed (`prob`), how (CutMix with probability `switch` where both are on), its share and its box. Images keep
    their dtype: uint8 is rounded. A target's share is exactly that of the pixels.
    Sources: mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899).
    """
    if not (mixup or cutmix) or not prob:
        return images, targets
    b, height, width, _ = images.shape
    own = own_weights(key, (b, height, width), mixup, cutmix, prob, switch)
    share = own.mean(axis=(1, 2))[:, None]
    pixels = _blend(images.astype(jnp.float32), own[..., None])
    if images.dtype == jnp.uint8:
        pixels = jnp.round(pixels)
    return pixels.astype(images.dtype), _blend(targets, share)


def own_weights(
    key: Key[Array, ""], shape: tuple[int, int, int], mixup: float, cutmix: float, prob: float, switch: float
) -> Float[Array, "b h w"]:
    """How much of each pixel of the mixed image is the image's own; the partner has the rest."""
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
    """Boxes with the image's proportions around a random pixel, cut at the borders; `outside` is the share left.

    True inside. Masks by comparison: their shapes do not depend on the boxes.
    """
    b, height, width = shape
    side = jnp.sqrt(1 - outside)
    keys = jax.random.split(key)
    rows = _interval(jax.random.randint(keys[0], (b,), 0, height, jnp.int32), side * height, height)
    columns = _interval(jax.random.randint(keys[1], (b,), 0, width, jnp.int32), side * width, width)
    return rows[:, :, None] & columns[:, None, :]


def _interval(centre: Int[Array, " b"], length: Float[Array, " b"], limit: int) -> Bool[Array, "b n"]:
    """Which of `limit` places lie in an interval of that length, in whole places, around a centre."""
    first = centre - length.astype(jnp.int32) // 2
    last = first + length.astype(jnp.int32)
    places = jnp.arange(limit, dtype=jnp.int32)[None]
    return (places >= first[:, None]) & (places < last[:, None])


def _blend(x: Float[Array, "b *rest"], own: Float[Array, "b *ones"]) -> Float[Array, "b *rest"]:
    return own * x + (1 - own) * x[::-1]
