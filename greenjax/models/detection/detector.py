"""`Detector`: Mask R-CNN (arXiv 1703.06870) on any backbone with a pyramid, as torchvision computes it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key
from ml_collections import ConfigDict

from greenjax.backbones.geometry import stage_channels
from greenjax.backbones.layers import LayerNorm
from greenjax.data.detection.targets import Targets, packed
from greenjax.errors import InputError
from greenjax.models.backbone import Backbone, Images
from greenjax.models.detection.anchors import anchors
from greenjax.models.detection.heads import Detections, RoIHeads
from greenjax.models.detection.proposals import RegionProposals
from greenjax.models.detection.pyramid import FeaturePyramid

NORM_EPSILON = 1e-5  # of the norms of the stages

Sizes = Int[Array, "b 2"]  # (height, width) in pixels


class Identity(nnx.Module):
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return x


class Detector(Backbone):
    """Images -> boxes with labels, scores and masks. Stages are normed, and joined in a pyramid; the last norm of the
    encoder, which classifiers have, is left out."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        if not config.model.num_classes:
            raise InputError("model.num_classes is None: expected the number of object classes, at least 1")
        self._image = self.grid.height, self.grid.width
        dims, detect, options = stage_channels(config), config.detect, dict(dtype=config.model.dtype, rngs=rngs)
        self.encoder.norm = Identity()
        self.norms = nnx.List(LayerNorm(dim, epsilon=NORM_EPSILON, rngs=rngs) for dim in dims)
        self.fpn = FeaturePyramid(dims, detect.fpn_dim, **options)
        self.rpn = RegionProposals(detect, **options)
        strides = [self.grid.unit // self.grid.side(stage) for stage in range(self.grid.stages)]
        self.roi_heads = RoIHeads(detect, config.model.num_classes, strides=strides, **options)

    def __call__(self, images: Any, sizes: Any = None) -> Detections:
        """The detections in images [b, h, w, c], float32, colour-normalised, or uint8. They are never resized.

        h and w are at most `image_size`; the model adds zeros on the right and below. `sizes` [b, 2] are the true
        (height, width) of the images in a batch that is padded, None = all of it. There are `detect.max_detections`
        places an image; results are deterministic. Raises InputError for other shapes.
        """
        images, sizes = self._padded(images, sizes)
        return _detections(*nnx.split(self), images, sizes)

    def losses(
        self,
        images: Any,
        targets: Targets | Sequence[Mapping[str, Any]],
        sizes: Any = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> dict[str, Float[Array, ""]]:
        """The five losses of torchvision, by its names, of images as in a call.

        `targets` are a dictionary an image, as in torchvision: boxes [n, 4], labels [n] and masks [n, h, w]; or a
        `Targets`. `key` draws the samples of anchors and boxes, and what drop-path drops. Without it nothing is
        dropped, and samples are always the same. Raises InputError for other shapes.
        """
        images, sizes = self._padded(images, sizes)
        count = len(targets[0] if isinstance(targets, Targets) else targets)
        if count != len(images):
            raise InputError(f"targets: found {count}, expected one for each of the {len(images)} images")
        if not isinstance(targets, Targets):
            targets = packed(targets, (self.grid.height, self.grid.width), self.config.model.num_classes)
        return _losses(*nnx.split(self), images, jax.tree.map(jnp.asarray, targets), sizes, key)

    def detections(self, images: Images, sizes: Sizes) -> Detections:
        """As a call, for use inside a compiled step: inputs are not checked."""
        levels = self.pyramid(images, sizes)
        proposals = self.rpn.proposals(*self.rpn(levels), self._anchors(levels), sizes, training=False)
        return self.roi_heads.detections(levels, proposals, sizes)

    def training_losses(
        self, images: Images, targets: Targets, sizes: Sizes, key: Key[Array, ""] | None
    ) -> dict[str, Float[Array, ""]]:
        """As `losses`, for use inside a compiled step: inputs are not checked."""
        drop, of_anchors, of_boxes = (
            (None, *jax.random.split(jax.random.key(0))) if key is None else jax.random.split(key, 3)
        )
        levels = self.pyramid(images, sizes, drop)
        logits, codes = self.rpn(levels)
        grid = self._anchors(levels)
        proposals = self.rpn.proposals(logits, codes, grid, sizes, training=True)
        losses = self.rpn.losses(logits, codes, grid, targets, of_anchors)
        return losses | self.roi_heads.losses(levels, proposals, targets, self._image, of_boxes)

    def pyramid(self, images: Images, sizes: Sizes, key: Key[Array, ""] | None = None) -> list[Float[Array, "b _ _ d"]]:
        """The levels of the feature pyramid: one a stage, and one above."""
        stages = self._on_grids(self._encoded(self._cleared(images, sizes), key)[1])
        return self.fpn([norm(stage) for norm, stage in zip(self.norms, stages, strict=True)])

    def pooled(self, images: Images, key: Key[Array, ""] | None = None) -> Float[Array, "b latent"]:
        """Raises InputError: pooled features are normed by the last norm."""
        raise InputError("a detector has no pooled features, as it has no last norm: expected a pre-training's model")

    def _cleared(self, images: Images, sizes: Sizes) -> Float[Array, "b h w c"]:
        """Colour-normalised, with zeros outside of the true sizes."""
        row, column = jnp.arange(images.shape[1])[None, :, None, None], jnp.arange(images.shape[2])[None, None, :, None]
        inside = (row < sizes[:, 0, None, None, None]) & (column < sizes[:, 1, None, None, None])
        return jnp.where(inside, self._normalise(jnp.asarray(images)), 0)

    def _anchors(self, levels: Sequence[Array]) -> list[Float32[np.ndarray, "_ 4"]]:
        grids = [(level.shape[1], level.shape[2]) for level in levels]
        return anchors(self._image, grids, self.config.detect.anchor_sizes)

    def _padded(self, images: Any, sizes: Any) -> tuple[Array, Sizes]:
        """Images of `image_size`, and the true sizes. Raises InputError for what the model cannot take."""
        shape = np.shape(images)
        if len(shape) != 4 or shape[1] > self._image[0] or shape[2] > self._image[1]:
            raise InputError(f"images: found shape {shape}, expected (b, h, w, c) with (h, w) up to {self._image}")
        b, h, w, _ = shape
        images = jnp.pad(jnp.asarray(images), ((0, 0), (0, self._image[0] - h), (0, self._image[1] - w), (0, 0)))
        self.check_images(images)
        sizes = np.full((b, 2), (h, w), np.int32) if sizes is None else sizes
        if np.shape(sizes) != (b, 2):
            raise InputError(
                f"sizes: found shape {np.shape(sizes)}, expected ({b}, 2): a (height, width) for each image"
            )
        return images, jnp.asarray(sizes, jnp.int32)


@partial(jax.jit, static_argnames="graphdef")
def _detections(graphdef: nnx.GraphDef, params: Any, images: Array, sizes: Array) -> Detections:
    return nnx.merge(graphdef, params).detections(images, sizes)


@partial(jax.jit, static_argnames="graphdef")
def _losses(
    graphdef: nnx.GraphDef, params: Any, images: Array, targets: Targets, sizes: Array, key: Array | None
) -> dict[str, Array]:
    return nnx.merge(graphdef, params).training_losses(images, targets, sizes, key)
