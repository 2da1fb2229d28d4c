"""Do the features get better? Classifies frozen features, by k-NN or a linear fit, while pre-training goes on."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32
from ml_collections import ConfigDict

from greenjax.config import flatten, resolve
from greenjax.data import (
    LabelledSource,
    Undecodable,
    first_images,
    labelled_eval_batches,
    matched,
    open_labelled,
    warn_of_overlap,
)
from greenjax.errors import InputError
from greenjax.evaluation.classify import accuracy, extract, told
from greenjax.evaluation.knn import knn_scores
from greenjax.evaluation.probe import choose_l2, fit_linear
from greenjax.runtime.console import say
from greenjax.runtime.placement import Placement

Features = tuple[Float[np.ndarray, "_ c"], Int32[np.ndarray, " _"]]  # images in rows, and their labels


class Monitor:
    """Top-1 and top-5 of frozen features on `data.eval_split`, learnt from `data.split`, or on sets of its own.

    `data.monitor_*` name these sets where they are others than those of the training. Both in the held-out view, at
    most log.monitor_images of each; an undecodable image is left out.
    """

    def __init__(self, config: ConfigDict, graphdef: nnx.GraphDef, place: Placement):
        """Raises InputError where the data have no labels."""
        most, data = config.log.monitor_images, monitored(config)
        train, held_out = (open_labelled(data, split) for split in (data.split, data.eval_split))
        if data != config.data:  # pre-training warns of its own splits
            split, eval_split = (f"monitor_{k}" if config.data[f"monitor_{k}"] else k for k in ("split", "eval_split"))
            warn_of_overlap(config.data, train, held_out, (split, eval_split))
        found = matched(held_out, train.classes, data.eval_split)
        for line in found.lines(f"monitor, {data.eval_split}"):
            say(line)
        self.train, self.held_out = (first_images(source, most) for source in (train, found.source))
        if config.monitor == "knn":
            check_neighbours(config, len(self.train), data.split)
        self.config, self.place = config, place
        self.pooled = pooled_features(graphdef)

    def measure(self, params: Any, undecodable: Undecodable | None = None) -> dict[str, int | float]:
        """{"knn_top1": ..., "knn_top5": ...} for the first of `knn.k`, or the same of a linear fit.

        Top-5 where there are more than ten classes.
        """
        kind, classes = self.config.monitor, len(self.train.classes)
        sources = self.train, self.held_out
        bank, queries = (
            features_of(self.config, self.pooled, params, each, self.place, undecodable) for each in sources
        )
        # Features live on the host; one device of each process classifies them, outside the mesh of the training.
        with jax.transfer_guard("allow"), jax.set_mesh(jax.sharding.Mesh(jax.local_devices()[:1], "one")):
            if kind == "knn":
                scores = next(iter(knn(self.config, bank, queries, classes).values()))
            else:
                scores = linear(bank, queries, classes)
        return {f"{kind}_{key}": value for key, value in told(accuracy(scores, queries[1]), classes).items()}


def monitored(config: ConfigDict) -> ConfigDict:
    """`config.data` of the sets that the monitor looks at: where `data.monitor_KEY` is given it replaces `data.KEY`."""
    keys = ("source", "path", "name", "split", "eval_split")
    given = {f"data.{key}": config.data[f"monitor_{key}"] for key in keys if config.data[f"monitor_{key}"]}
    pathless = {"data.path": ""} if given.get("data.source") == "digits" else {}
    return resolve(flatten(config) | pathless | given).data


def check_neighbours(config: ConfigDict, images: int, split: str) -> None:
    """Raises InputError where `knn.k` asks for more neighbours than a split has images."""
    if max(config.knn.k) > images:
        raise InputError(f"knn.k is {config.knn.k}: expected at most the {images} images of {split!r}")


def pooled_features(graphdef: nnx.GraphDef) -> Callable[[Any, Array], Array]:
    """(parameters, images) -> pooled features: one function, so that it is compiled once."""
    return lambda params, images: nnx.merge(graphdef, params).pooled(images)


def features_of(
    config: ConfigDict,
    pooled: Callable,
    params: Any,
    source: LabelledSource,
    place: Placement,
    undecodable: Undecodable | None = None,
) -> Features:
    """Features and labels of all images of a source; those that cannot be used are left out."""
    batches = labelled_eval_batches(config, source, place.own(config.data.batch_size), undecodable)
    return extract(pooled, params, batches, place)


def knn(
    config: ConfigDict, bank: Features, queries: Features, classes: int
) -> dict[int, Float[np.ndarray, "n classes"]]:
    """Scores for every k of `knn.k`."""
    return knn_scores(*bank, queries[0], classes, k=config.knn.k, temperature=config.knn.temperature)


def linear(train: Features, queries: Features, classes: int) -> Float[np.ndarray, "n classes"]:
    """Logits of a multinomial logistic regression, its l2 chosen on a tenth of the training features."""
    return fit_linear(*train, classes, l2=choose_l2(*train, classes)).logits(queries[0])
