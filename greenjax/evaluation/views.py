"""A monitor that needs no labels: how often features find an image again by another random view of it."""

from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.data.encoded import Images
from greenjax.data.labels import spaced_rows
from greenjax.data.loader import eval_size, two_views
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.evaluation.checks import check_finite
from greenjax.evaluation.outputs import model_outputs, pooled_forward
from greenjax.runtime.placement import Placement

MOST = 1000  # images. More are harder to tell apart, so figures of other numbers differ


class ViewsMonitor:
    """Looks for images of a split among each other, by their pooled features in two random views."""

    def __init__(self, config: ConfigDict, images: Images, graphdef: nnx.GraphDef, place: Placement):
        """Takes at most MOST and log.monitor_images images, evenly spaced: a folder is in the order of its classes."""
        count = min(MOST, len(images), config.log.monitor_images)
        self.rows = spaced_rows(len(images), count).tolist()
        self.config, self.images, self.place = config, images, place
        self.pooled = pooled_forward(graphdef)

    def measure(self, params: Any, undecodable: Undecodable | None = None) -> dict[str, float]:
        """{"views_top1": ...}. Images that cannot be used in both views are left out."""
        return {"views_top1": found_again(*self.features(params, undecodable))}

    def features(
        self, params: Any, undecodable: Undecodable | None = None
    ) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
        """The features of both views of the images that can be used."""
        own = self.place.own(eval_size(self.config))
        batches = two_views(self.config, self.images, self.rows, own, undecodable)
        found = [(features, valid) for features, _, valid in model_outputs(self.pooled, params, batches, self.place)]
        features, valid = (np.concatenate(each)[: 2 * len(self.rows)] for each in zip(*found))
        both = valid.reshape(2, -1).all(axis=0)
        if not both.any():
            raise InputError("no image of the monitor can be used: expected at least 1 (warnings name them)")
        first, second = features.reshape(2, len(self.rows), -1)[:, both].astype(np.float32)
        return first, second


def found_again(first: Float[np.ndarray, "n c"], second: Float[np.ndarray, "n c"]) -> float:
    """The share of images whose second view is the nearest to their first one, by cosine, among those of all images.

    The mean over images is taken off each view's features: what all images share tells none of them. Raises InputError
    for features that are not finite.
    """
    for features in (first, second):
        check_finite("features", features)
    a, b = unit(first), unit(second)
    return float(((a @ b.T).argmax(axis=1) == np.arange(len(a))).mean())


def unit(features: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Every row less the mean row, at length 1; 0 stays 0."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
