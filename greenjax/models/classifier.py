"""The classifier that fine-tuning trains: the dense encoder, the mean over its tokens, one linear layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.models.backbone import Backbone, Images, widened
from greenjax.models.layers import linear, small_normal


class Classifier(Backbone):
    """Images -> logits. Without `model.num_classes` it has no head, and pools features only.

    Source: paper, section 4.1 (fine-tuning); global average pooling as in Swin (arXiv 2103.14030), section 3.3.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        # Small logits to begin with: no class is preferred.
        make = partial(linear, self.latent_dim, dtype=config.model.dtype, init=small_normal, rngs=rngs)
        self.head = make(config.model.num_classes) if config.model.num_classes else None

    def __call__(self, images: Any, key: Key[Array, ""] | None = None) -> Float[Array, "b classes"]:
        """Logits, float32. `images` [b, h, w, c] are float32, colour-normalised, or uint8; without a key, nothing is
        dropped and the result is deterministic. Raises InputError for other shapes."""
        self.check_images(images)
        return _logits(*nnx.split(self), jnp.asarray(images), key)

    def forward(self, images: Images, key: Key[Array, ""] | None = None) -> Float[Array, "b classes"]:
        """As the call, unchecked and not compiled by itself: for use inside a step."""
        assert self.head is not None, "model.num_classes was not set"
        return widened(self.head(self.pooled(images, key)))

    def pooled(self, images: Images, key: Key[Array, ""] | None = None) -> Float[Array, "b latent"]:
        """The mean over the normed tokens of the last stage."""
        return widened(self.dense(images, key)[0]).mean(axis=1)


@partial(jax.jit, static_argnames="graphdef")
def _logits(graphdef: nnx.GraphDef, params: Any, images: Array, key: Array | None) -> Array:
    return nnx.merge(graphdef, params).forward(images, key)
