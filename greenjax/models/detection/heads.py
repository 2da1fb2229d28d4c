"""The heads over boxes: their classes, their codes and their masks.

Source: Mask R-CNN (arXiv 1703.06870), section 3 and figure 4 (right).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from greenjax.backbones.layers import linear
from greenjax.data.detection.targets import Targets
from greenjax.models.detection.boxes import at_least, clipped, decoded, encoded
from greenjax.models.detection.convolutions import Conv, Upsampling, kaiming_normal, linear_uniform
from greenjax.models.detection.losses import binary_cross_entropy, box_loss, mean_where
from greenjax.models.detection.matching import matched, sampled
from greenjax.models.detection.nms import suppressed
from greenjax.models.detection.proposals import Proposals
from greenjax.models.detection.roi_align import mask_targets, roi_align

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the four codes of a box
BOX_CELLS, MASK_CELLS = 7, 14  # a side of the features of a box; masks have twice as many pixels
MASK_CONVS = 4
OBJECT = 0.5  # a proposal stands for an object from this overlap on, for background below
SHARE = 0.25  # of positive proposals in a sample, at most
SMALLEST = 1e-2  # pixels: the least side of a detection


class Detections(NamedTuple):
    """Objects of every image, by falling score; places where `valid` is False hold none."""

    boxes: Float[Array, "b n 4"]  # (x0, y0, x1, y1) in pixels
    scores: Float[Array, "b n"]  # probabilities
    labels: Int[Array, "b n"]  # 1 to num_classes
    masks: Float[Array, "b n 28 28"]  # probabilities, over the box
    valid: Bool[Array, "b n"]


class Sample(NamedTuple):
    """Boxes that the losses take, positive ones first, with the objects that they stand for."""

    boxes: Float[Array, "b k 4"]
    objects: Int[Array, "b k"]
    labels: Int[Array, "b k"]  # 0: background
    positive: Bool[Array, "b k"]
    valid: Bool[Array, "b k"]


class BoxHead(nnx.Module):
    """Two dense layers over the features of a box."""

    def __init__(self, dim: int, hidden: int, *, dtype: Any, rngs: nnx.Rngs):
        options = dict(init=linear_uniform, dtype=dtype, rngs=rngs)
        self.fc6 = linear(dim * BOX_CELLS**2, hidden, **options)
        self.fc7 = linear(hidden, hidden, **options)

    def __call__(self, x: Float[Array, "n p q c"]) -> Float[Array, "n d"]:
        x = rearrange(x, "n p q c -> n (c p q)")  # the order of PyTorch, whose matrices then need no permutation
        return jax.nn.relu(self.fc7(jax.nn.relu(self.fc6(x))))


class BoxPredictor(nnx.Module):
    """Logits of the classes, 0 = background, and a code of the box for each of them."""

    def __init__(self, dim: int, classes: int, *, dtype: Any, rngs: nnx.Rngs):
        options = dict(init=linear_uniform, dtype=dtype, rngs=rngs)
        self.cls_score = linear(dim, classes, **options)
        self.bbox_pred = linear(dim, 4 * classes, **options)

    def __call__(self, x: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "n k 4"]]:
        codes = rearrange(self.bbox_pred(x), "n (k four) -> n k four", four=4)
        return self.cls_score(x).astype(jnp.float32), codes.astype(jnp.float32)


class MaskPredictor(nnx.Module):
    """Logits of the mask of one class, at twice the resolution of the features."""

    def __init__(self, dim: int, classes: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv5_mask = Upsampling(dim, dim, dtype=dtype, rngs=rngs)
        self.mask_fcn_logits = Conv(dim, classes, 1, init=kaiming_normal, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w d"], labels: Int[Array, " n"]) -> Float[Array, "n 2*h 2*w"]:
        """Of the classes of `labels` alone: all of them would be the largest array of a detector."""
        x, last = jax.nn.relu(self.conv5_mask(x)), self.mask_fcn_logits
        kernel, bias = (jnp.take(a[...], labels, axis=-1) for a in (last.kernel, last.bias))
        logits = jnp.einsum("nhwpqd,dn->nhwpq", x, kernel[0, 0].astype(x.dtype)).astype(jnp.float32)
        return rearrange(logits, "n h w p q -> n (h p) (w q)") + bias[:, None, None]


class RoIHeads(nnx.Module):
    """The heads, what they detect, and their losses.

    The paper's widths at `detect.fpn_dim` = 256: 1,024 channels of the dense layers, 256 of the mask head.
    """

    def __init__(self, detect: ConfigDict, num_classes: int, *, strides: Sequence[int], dtype: Any, rngs: nnx.Rngs):
        dim, options = detect.fpn_dim, dict(dtype=dtype, rngs=rngs)
        self.strides = tuple(strides)  # of the levels that boxes read
        self.box_head = BoxHead(dim, 4 * dim, **options)
        self.box_predictor = BoxPredictor(4 * dim, num_classes + 1, **options)
        self.mask_head = nnx.List(Conv(dim, dim, 3, init=kaiming_normal, **options) for _ in range(MASK_CONVS))
        self.mask_predictor = MaskPredictor(dim, num_classes + 1, **options)
        self.samples, self.score_threshold = detect.box_samples, detect.score_threshold
        self.nms_threshold, self.max_detections = detect.nms_threshold, detect.max_detections

    def detections(self, levels: Sequence[Array], proposals: Proposals, sizes: Int[Array, "b 2"]) -> Detections:
        """The detections in every image of `sizes`, (height, width) in pixels."""
        logits, codes = self._boxes(levels, proposals.boxes)
        scores = jax.nn.softmax(logits)[..., 1:]  # without the background
        boxes = clipped(decoded(codes[:, :, 1:], proposals.boxes[:, :, None], WEIGHTS), sizes)
        valid = (scores > self.score_threshold) & at_least(boxes, SMALLEST) & proposals.valid[..., None]
        labels = jnp.broadcast_to(jnp.arange(1, 1 + scores.shape[2])[None, None], scores.shape)
        boxes, scores, labels, valid = (x.reshape(len(x), -1, *x.shape[3:]) for x in (boxes, scores, labels, valid))
        options = dict(threshold=self.nms_threshold, limit=self.max_detections)
        index, valid = suppressed(boxes, scores, labels, valid, **options)
        boxes = jnp.where(valid[..., None], jnp.take_along_axis(boxes, index[..., None], axis=1), 0)
        scores, labels = (jnp.where(valid, jnp.take_along_axis(x, index, axis=1), 0) for x in (scores, labels))
        return Detections(boxes, scores, labels, jax.nn.sigmoid(self._masks(levels, boxes, labels)), valid)

    def losses(
        self,
        levels: Sequence[Float[Array, "b _ _ c"]],
        proposals: Proposals,
        targets: Targets,
        image: tuple[int, int],
        key: Key[Array, ""],
    ) -> dict[str, Float[Array, ""]]:
        """The losses of a sample of proposals of every image, of at most `image` pixels, (height, width)."""
        sample = self._sample(proposals, targets, key)
        logits, codes = self._boxes(levels, sample.boxes)
        surprise = -jnp.take_along_axis(jax.nn.log_softmax(logits), sample.labels[..., None], axis=2)[..., 0]
        code = jnp.take_along_axis(codes, sample.labels[..., None, None], axis=2)[:, :, 0]
        wanted = encoded(jnp.take_along_axis(targets.boxes, sample.objects[..., None], axis=1), sample.boxes, WEIGHTS)
        box_losses = {
            "loss_classifier": mean_where(surprise, sample.valid),
            "loss_box_reg": box_loss(code, wanted, sample.positive, sample.valid),
        }
        few = min(int(self.samples * SHARE), sample.valid.shape[1])
        first = Sample(*(x[:, :few] for x in sample))  # holds all positive ones
        shapes = jax.vmap(partial(_shapes, image=image))(targets, first.objects, first.boxes)
        errors = binary_cross_entropy(self._masks(levels, first.boxes, first.labels), shapes)
        return box_losses | {"loss_mask": mean_where(errors.mean(axis=(2, 3)), first.positive)}

    def _sample(self, proposals: Proposals, targets: Targets, key: Key[Array, ""]) -> Sample:
        """Proposals, and the objects' own boxes: from the start on, there is a box for every object."""
        boxes = jnp.concatenate([proposals.boxes, targets.boxes], axis=1)
        real = jnp.concatenate([proposals.valid, targets.valid], axis=1)
        match = jax.vmap(partial(matched, low=OBJECT, high=OBJECT))(boxes, targets.boxes, targets.valid)
        draw = jax.vmap(partial(sampled, number=self.samples, share=SHARE))
        index, positive, valid = draw(jax.random.split(key, len(boxes)), match.positive & real, match.negative & real)
        objects = jnp.take_along_axis(match.objects, index, axis=1)
        labels = jnp.where(positive, jnp.take_along_axis(targets.labels, objects, axis=1), 0)
        return Sample(jnp.take_along_axis(boxes, index[..., None], axis=1), objects, labels, positive, valid)

    def _boxes(
        self, levels: Sequence[Array], boxes: Float[Array, "b n 4"]
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n k 4"]]:
        features = roi_align(levels[: len(self.strides)], boxes, self.strides, BOX_CELLS)
        logits, codes = self.box_predictor(self.box_head(rearrange(features, "b n ... -> (b n) ...")))
        return logits.reshape(*boxes.shape[:2], -1), codes.reshape(*boxes.shape[:2], -1, 4)

    def _masks(
        self, levels: Sequence[Array], boxes: Float[Array, "b n 4"], labels: Int[Array, "b n"]
    ) -> Float[Array, "b n 28 28"]:
        """The logits of the masks of the labels."""
        features = roi_align(levels[: len(self.strides)], boxes, self.strides, MASK_CELLS)
        x = rearrange(features, "b n ... -> (b n) ...")
        for conv in self.mask_head:
            x = jax.nn.relu(conv(x))
        logits = self.mask_predictor(x, labels.reshape(-1))
        return logits.reshape(*boxes.shape[:2], *logits.shape[1:])


def _shapes(
    targets: Targets, objects: Int[Array, " n"], boxes: Float[Array, "n 4"], image: tuple[int, int]
) -> Float[Array, "n 28 28"]:
    """The masks of the objects of one image inside the boxes."""
    masks, regions = targets.masks[objects].astype(jnp.float32), targets.regions[objects]
    return mask_targets(masks, regions, boxes, 2 * MASK_CELLS, image)
