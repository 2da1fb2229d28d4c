"""The region proposal network (RPN): which boxes may hold an object.

Source: Faster R-CNN (arXiv 1506.01497), section 3.1, on every level of a pyramid (FPN, arXiv 1612.03144, section 4.1).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Key
from ml_collections import ConfigDict

from greenjax.data.detection.targets import Targets
from greenjax.models.detection.anchors import RATIOS
from greenjax.models.detection.boxes import at_least, clipped, decoded, encoded
from greenjax.models.detection.convolutions import Conv, normal
from greenjax.models.detection.losses import binary_cross_entropy, box_loss, mean_where
from greenjax.models.detection.matching import matched, sampled
from greenjax.models.detection.nms import suppressed

WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # of the four codes of a box
SMALLEST = 1e-3  # pixels: the least side of a proposal
OBJECT, BACKGROUND = 0.7, 0.3  # an anchor is one from this overlap on, the other below
SHARE = 0.5  # of positive anchors in a sample, at most


class Proposals(NamedTuple):
    """Boxes in pixels, by falling score, and which of them are any."""

    boxes: Float[Array, "b n 4"]
    valid: Bool[Array, "b n"]


class RPNHead(nnx.Module):
    """For every anchor the logit of an object and the code of its box."""

    def __init__(self, dim: int, *, dtype: Any, rngs: nnx.Rngs):
        options = dict(init=normal, dtype=dtype, rngs=rngs)
        self.conv = Conv(dim, dim, 3, **options)
        self.cls_logits = Conv(dim, len(RATIOS), 1, **options)
        self.bbox_pred = Conv(dim, 4 * len(RATIOS), 1, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b n"], Float[Array, "b n 4"]]:
        """In the order of `anchors`, float32."""
        x = jax.nn.relu(self.conv(x))
        logits, codes = (y.astype(jnp.float32) for y in (self.cls_logits(x), self.bbox_pred(x)))
        return logits.reshape(len(x), -1), codes.reshape(len(x), -1, 4)


class RegionProposals(nnx.Module):
    """The head, what it proposes, and its losses. Logits, codes and anchors are lists, an array a level."""

    def __init__(self, detect: ConfigDict, *, dtype: Any, rngs: nnx.Rngs):
        self.head = RPNHead(detect.fpn_dim, dtype=dtype, rngs=rngs)
        self.pre_nms, self.post_nms = tuple(detect.pre_nms), tuple(detect.post_nms)
        self.threshold, self.samples = detect.rpn_nms_threshold, detect.rpn_samples

    def __call__(self, levels: Sequence[Float[Array, "b _ _ c"]]) -> tuple[list[Array], list[Array]]:
        """The logits and the codes of every level."""
        logits, codes = zip(*(self.head(level) for level in levels))
        return list(logits), list(codes)

    def proposals(
        self,
        logits: Sequence[Float[Array, "b _"]],
        codes: Sequence[Float[Array, "b _ 4"]],
        anchors: Sequence[Float32[np.ndarray, "_ 4"]],
        sizes: Int[Array, "b 2"],
        *,
        training: bool,
    ) -> Proposals:
        """The best boxes of all levels after suppression inside each level. No gradient goes through them."""
        pre, post = (numbers[0 if training else 1] for numbers in (self.pre_nms, self.post_nms))
        boxes, scores, level = [], [], []
        for i, (logit, code, anchor) in enumerate(zip(*jax.lax.stop_gradient((logits, codes)), anchors, strict=True)):
            best, place = jax.lax.top_k(logit, min(pre, logit.shape[1]))
            code, anchor = jnp.take_along_axis(code, place[..., None], axis=1), jnp.take(anchor, place, axis=0)
            boxes.append(clipped(decoded(code, anchor, WEIGHTS), sizes))
            scores.append(jax.nn.sigmoid(best))
            level.append(jnp.full_like(place, i))
        boxes, scores, level = (jnp.concatenate(each, axis=1) for each in (boxes, scores, level))
        options = dict(threshold=self.threshold, limit=min(post, scores.shape[1]))
        index, valid = suppressed(boxes, scores, level, at_least(boxes, SMALLEST), **options)
        return Proposals(jnp.take_along_axis(boxes, index[..., None], axis=1), valid)

    def losses(
        self,
        logits: Sequence[Float[Array, "b _"]],
        codes: Sequence[Float[Array, "b _ 4"]],
        anchors: Sequence[Float32[np.ndarray, "_ 4"]],
        targets: Targets,
        key: Key[Array, ""],
    ) -> dict[str, Float[Array, ""]]:
        """The losses of a sample of anchors of every image."""
        logit, code = (jnp.concatenate(each, axis=1) for each in (logits, codes))
        anchor = jnp.concatenate(anchors)
        match = jax.vmap(partial(matched, low=BACKGROUND, high=OBJECT, best_too=True), (None, 0, 0))
        found = match(anchor, targets.boxes, targets.valid)
        sample = jax.vmap(partial(sampled, number=self.samples, share=SHARE))
        index, positive, valid = sample(jax.random.split(key, len(logit)), found.positive, found.negative)
        logit, code = jnp.take_along_axis(logit, index, axis=1), jnp.take_along_axis(code, index[..., None], axis=1)
        objects = jnp.take_along_axis(found.objects, index, axis=1)
        boxes = jnp.take_along_axis(targets.boxes, objects[..., None], axis=1)
        wanted = encoded(boxes, jnp.take(anchor, index, axis=0), WEIGHTS)
        return {
            "loss_objectness": mean_where(binary_cross_entropy(logit, positive.astype(logit.dtype)), valid),
            "loss_rpn_box_reg": box_loss(code, wanted, positive, valid),
        }
