"""The classifier of fine-tuning and linear probes: dense encoder, pooled features, one linear layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.backbones.initial import small_normal
from greenjax.backbones.layers import linear
from greenjax.errors import InputError
from greenjax.models.backbone import Backbone, Images, widened


class BatchNorm(nnx.Module):
    """Batch norm without affine, before the head of a linear probe: features of any scale train at one rate.

    Its running statistics are parameters without a gradient. Source: MAE (arXiv 2111.06377),
    appendix A.1. As PyTorch's: a batch is normalised by its biased variance, the running one is unbiased.
    """

    momentum, epsilon = 0.1, 1e-6  # share of a new batch in the running statistics; added to the variance

    def __init__(self, dim: int):
        self.mean = nnx.Param(jnp.zeros(dim, jnp.float32))
        self.var = nnx.Param(jnp.ones(dim, jnp.float32))

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b c"]:
        return self._normalised(x, self.mean[...], self.var[...])

    def of_batch(self, x: Float[Array, "b c"]) -> tuple[Float[Array, "b c"], dict[str, Float[Array, " c"]]]:
        """x normalised by the statistics of the batch (at least 2 images), and the running statistics after it."""
        b, mean, var = len(x), x.mean(axis=0), x.var(axis=0)
        seen = {"mean": mean, "var": var * (b / (b - 1))}
        before = {"mean": self.mean[...], "var": self.var[...]}
        running = jax.tree.map(lambda old, new: (1 - self.momentum) * old + self.momentum * new, before, seen)
        return self._normalised(x, mean, var), jax.lax.stop_gradient(running)

    def _normalised(self, x: Array, mean: Array, var: Array) -> Array:
        return (x - mean[None]) * jax.lax.rsqrt(var + self.epsilon)[None]


class Classifier(Backbone):
    """Images -> logits. Without `model.num_classes` it has no head, and only pools features.

    Source: paper, section 4.1 (fine-tuning); global average pooling as in Swin (arXiv 2103.14030), section 3.3.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.batch_norm = BatchNorm(self.latent_dim) if config.task == "linear" else None
        # Small initial logits: no class is preferred.
        make = partial(linear, self.latent_dim, dtype=config.model.dtype, init=small_normal, rngs=rngs)
        self.head = make(config.model.num_classes) if config.model.num_classes else None

    def __call__(self, images: Any, key: Key[Array, ""] | None = None) -> Float[Array, "b classes"]:
        """Logits, float32. `images` [b, h, w, c] are float32, colour-normalised, or integers as in files; without a
        key, nothing is dropped and the result is deterministic. Raises InputError for other shapes."""
        self.check_images(images)
        if self.head is None:
            raise InputError("model.num_classes is None: expected a whole number, at least 1, for a model with logits")
        return _logits(*nnx.split(self), jnp.asarray(images), key)

    def forward(self, images: Images, key: Key[Array, ""] | None = None) -> Float[Array, "b classes"]:
        """Logits as by a call, for use inside a compiled step: inputs are not checked."""
        assert self.head is not None, "model.num_classes was not set"
        x = self.pooled(images, key)
        return widened(self.head(x if self.batch_norm is None else self.batch_norm(x)))

    def probe(self, images: Images) -> tuple[Float[Array, "b classes"], dict[str, Float[Array, " _"]]]:
        """Logits of a linear probe in training, and the running statistics of its batch norm after the batch."""
        assert self.head is not None and self.batch_norm is not None, "a linear probe is built with task 'linear'"
        x, statistics = self.batch_norm.of_batch(jax.lax.stop_gradient(self.pooled(images)))
        return widened(self.head(x)), statistics


@partial(jax.jit, static_argnames="graphdef")
def _logits(graphdef: nnx.GraphDef, params: Any, images: Array, key: Array | None) -> Array:
    return nnx.merge(graphdef, params).forward(images, key)
