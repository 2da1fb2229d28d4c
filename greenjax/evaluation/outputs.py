"""A model's outputs for every image of a set: a classifier's logits, or the pooled features of an encoder."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32
from ml_collections import ConfigDict

from greenjax.data.labels import LabelledSource
from greenjax.data.loader import LabelledBatch, eval_size, labelled_eval_batches
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.evaluation.checks import Place
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import gathered


class Features(NamedTuple):
    """Pooled features, an image a row, and the labels of the images."""

    values: Float[np.ndarray, "n c"]
    labels: Int32[np.ndarray, " n"]


def source_features(
    config: ConfigDict,
    pooled: Callable[[Any, Array], Float[Array, "b c"]],
    params: Any,
    source: LabelledSource,
    place: Placement,
    undecodable: Undecodable | None = None,
) -> Features:
    """The features of all images of a source; images that cannot be used are left out and reported to `undecodable`."""
    batches = labelled_eval_batches(config, source, place.own(eval_size(config)), undecodable)
    return extract_features(pooled, params, batches, place)


def pooled_forward(graphdef: nnx.GraphDef) -> Callable[[Any, Array], Float[Array, "b c"]]:
    """The function pooled(params, images) -> features. It is compiled once, so a caller keeps it."""
    return lambda params, images: nnx.merge(graphdef, params).pooled(images)


def extract_features(
    pooled: Callable[[Any, Array], Float[Array, "b c"]], params: Any, batches: Iterable[LabelledBatch], place: Place
) -> Features:
    """pooled(params, images) of all valid images, as float32 on the host. Raises InputError for no images."""
    features: list[np.ndarray] = []
    seen = [np.zeros(0, np.int32)]
    for output, labels, valid in model_outputs(pooled, params, batches, place):
        features.append(output[valid].astype(np.float32))
        seen.append(labels[valid])
    found = np.concatenate(seen)
    if not len(found):
        raise InputError("features are of 0 images: expected at least 1")
    return Features(np.concatenate(features), found)


def model_outputs(
    forward: Callable[[Any, Array], Array], params: Any, batches: Iterable[LabelledBatch], place: Place
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """forward(params, images) of each batch, with its labels and valid rows, all on the host.

    `forward` is compiled once, also for later calls. `place` puts images on the devices, split by axis 0. The devices
    compute one batch while the next is read. Each of several processes gives its own rows of a batch, and all get the
    whole batch.
    """
    compiled = jax.jit(forward)
    ahead: tuple[Array, np.ndarray, np.ndarray] | None = None
    for batch in batches:
        ready, ahead = ahead, (compiled(params, place(batch.images)), batch.labels, batch.valid)
        if ready is not None:
            yield gathered(ready)
    if ahead is not None:
        yield gathered(ahead)
