"""The terms of the losses, element by element, and their means over the valid ones. In float32.

Sources: Fast R-CNN (arXiv 1504.08083), equation 3; Mask R-CNN (arXiv 1703.06870), section 3; normalised as torchvision
does.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

BETA = 1 / 9  # where the square of a difference becomes its absolute value


def smooth_l1(difference: Float[Array, "*b"]) -> Float[Array, "*b"]:
    size = jnp.abs(difference)
    return jnp.where(size < BETA, 0.5 * jnp.square(size) / BETA, size - 0.5 * BETA)


def binary_cross_entropy(logits: Float[Array, "*b"], targets: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def mean_where(values: Float[Array, "*b"], valid: Bool[Array, "*b"]) -> Float[Array, ""]:
    """0 where none is valid."""
    return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)


def box_loss(
    codes: Float[Array, "*b 4"], targets: Float[Array, "*b 4"], positive: Bool[Array, "*b"], valid: Bool[Array, "*b"]
) -> Float[Array, ""]:
    """The error of the positive boxes, summed over their four codes, over the number of all valid ones."""
    # Targets of other boxes may be infinite, and would make the gradient NaN.
    difference = codes - jnp.where(positive[..., None], targets, codes)
    return smooth_l1(difference).sum() / jnp.maximum(valid.sum(), 1)
