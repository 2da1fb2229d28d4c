"""The monitor of pre-training: the accuracy of frozen features, by k-NN or a linear fit."""

from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from greenjax.data.labels import check_several, evenly_spaced, matched
from greenjax.data.open import open_labelled
from greenjax.data.overlap import warn_of_overlap
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.evaluation.classify import accuracy, reported_accuracies
from greenjax.evaluation.knn import knn_scores
from greenjax.evaluation.outputs import pooled_forward, source_features
from greenjax.evaluation.probe import LEAST, linear_scores
from greenjax.runtime.console import say
from greenjax.runtime.placement import Placement


class Monitor:
    """Classifies the frozen features of a held-out split by those of a training split.

    Images of both are seen in the held-out view, at most log.monitor_images of each, evenly spaced; undecodable
    images are left out.
    """

    def __init__(self, config: ConfigDict, data: ConfigDict, graphdef: nnx.GraphDef, place: Placement):
        """`data`: a data section, for its split and eval_split.

        Raises InputError for no labels, one class, or too few images.
        """
        most = config.log.monitor_images
        train, held_out = (open_labelled(data, split) for split in (data.split, data.eval_split))
        if data != config.data:  # pre-training warns of an overlap of its own splits
            split, eval_split = (f"monitor_{k}" if config.data[f"monitor_{k}"] else k for k in ("split", "eval_split"))
            warn_of_overlap(config.data, train, held_out, (split, eval_split))
        check_several(train.classes, f"split {data.split!r} of the monitor")
        found = matched(held_out, train.classes, data.eval_split)
        for line in found.lines(f"monitor, {data.eval_split}"):
            say(line)
        self.train, self.held_out = (evenly_spaced(source, most) for source in (train, found.source))
        if config.monitor == "knn":
            check_neighbours(config, len(self.train), data.split)
        elif len(self.train) < LEAST:
            found = f"{len(self.train)} images of {data.split!r} (log.monitor_images is {most})"
            raise InputError(f"monitor is 'linear', with {found}: expected at least {LEAST}")
        self.config, self.place = config, place
        self.pooled = pooled_forward(graphdef)

    def measure(self, params: Any, undecodable: Undecodable | None = None) -> dict[str, int | float]:
        """{"knn_top1": ..., "knn_top5": ...} for the first of `knn.k`, or {"linear_top1": ..., "linear_top5": ...}.

        Top-5 where there are more than ten classes.
        """
        config, classes = self.config, len(self.train.classes)
        bank, queries = (
            source_features(config, self.pooled, params, source, self.place, undecodable)
            for source in (self.train, self.held_out)
        )
        # Features live on the host; one device of each process classifies them, outside the mesh of the training.
        with jax.transfer_guard("allow"), jax.set_mesh(jax.sharding.Mesh(jax.local_devices()[:1], "one")):
            if config.monitor == "knn":
                k, temperature = config.knn.k[0], config.knn.temperature
                scores = knn_scores(*bank, queries.values, classes, k=(k,), temperature=temperature)[k]
            else:
                scores = linear_scores(bank, queries, classes)
        accuracies = reported_accuracies(accuracy(scores, queries.labels), classes)
        return {f"{config.monitor}_{name}": value for name, value in accuracies.items()}


def check_neighbours(config: ConfigDict, images: int, split: str) -> None:
    """Raises InputError where `knn.k` asks for more neighbours than a split has images."""
    if max(config.knn.k) > images:
        raise InputError(f"knn.k is {config.knn.k}: expected at most the {images} images of {split!r}")
