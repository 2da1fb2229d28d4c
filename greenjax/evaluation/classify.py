"""A classifier on labelled images: accuracy, loss, calibration and confusions. Each image counts exactly once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int64, Integer

from greenjax.data.labels import check_labels
from greenjax.data.loader import LabelledBatch
from greenjax.errors import InputError
from greenjax.evaluation.checks import Place, check_classes, check_finite
from greenjax.evaluation.outputs import model_outputs

TOP = 5
TOP5_ABOVE = 10  # classes: with fewer, chance alone reaches a top-5 accuracy of a half
BINS = 15  # of confidence, for the calibration error, as in Guo et al.


class Predictions(NamedTuple):
    """A classifier's answer for each image, in the order of the images."""

    image: Integer[np.ndarray, " n"]  # its row, counted over all batches, rows that are not valid included
    label: Integer[np.ndarray, " n"]
    predicted: Integer[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]  # softmax probability of the predicted class


@dataclass(frozen=True)
class Evaluation:
    """The results of a classifier on a set of images. `metrics`: images, top1, top5, loss, ece."""

    metrics: dict[str, int | float]
    confusion: Int64[np.ndarray, "classes classes"]  # images by true class (rows) and predicted class (columns)
    predictions: Predictions | None


class ClassificationTotals:
    """Exact counts over batches, and sums in float64: results do not depend on the batch size.

    Among classes with equal logits the lowest comes first.
    """

    def __init__(self, classes: int):
        check_classes(classes)
        self.images = 0
        self.confusion: Int64[np.ndarray, "classes classes"] = np.zeros((classes, classes), np.int64)
        self._rows, self._in_top, self._loss = 0, 0, 0.0
        self._right_in_bin, self._confidence_in_bin = np.zeros(BINS, np.int64), np.zeros(BINS, np.float64)

    def add(
        self, logits: Float[np.ndarray, "b classes"], labels: Integer[np.ndarray, " b"], valid: Bool[np.ndarray, " b"]
    ) -> Predictions:
        """Counts the valid rows and returns their predictions.

        Raises InputError for labels that the head does not have and for logits that are not finite.
        """
        index, logits, labels = self._rows + np.flatnonzero(valid), logits[valid].astype(np.float64), labels[valid]
        check_labels(labels, len(self.confusion), index=index)
        check_finite("logits", logits, index)
        logits -= logits.max(axis=1, keepdims=True, initial=-np.inf)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))  # now log-probabilities
        predicted = logits.argmax(axis=1)
        confidence = np.exp(logits[np.arange(len(labels)), predicted])
        self._rows += len(valid)
        self.images += len(labels)
        self._loss -= logits[np.arange(len(labels)), labels].sum()
        self._in_top += int((_rank(logits, labels) < TOP).sum())
        np.add.at(self.confusion, (labels, predicted), 1)
        self._add_confidence(confidence, predicted == labels)
        return Predictions(index, labels, predicted, confidence)

    def metrics(self) -> dict[str, int | float]:
        """images, top1 and top5 (shares; with fewer than five classes top5 is 1), loss (mean cross-entropy), ece.

        ece is the expected calibration error: the mean over images of |accuracy - mean confidence| in their
        bin of confidence, 15 bins of equal width. Source: Guo et al., arXiv 1706.04599, section 2. Raises InputError
        where no image was counted.
        """
        if not self.images:
            raise InputError("no image was evaluated: expected at least 1")
        gap = np.abs(self._right_in_bin - self._confidence_in_bin).sum()
        return {
            "images": self.images,
            "top1": float(np.trace(self.confusion) / self.images),
            "top5": self._in_top / self.images,
            "loss": float(self._loss / self.images),
            "ece": float(gap / self.images),
        }

    def _add_confidence(self, confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> None:
        """Bin m of M holds ((m - 1) / M, m / M]."""
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        self._right_in_bin += np.bincount(bins[right], minlength=BINS)
        self._confidence_in_bin += np.bincount(bins, confidence, minlength=BINS)


def accuracy(scores: Float[np.ndarray, "n classes"], labels: Integer[np.ndarray, " n"]) -> dict[str, int | float]:
    """images, top1 and top5 of scores that are not logits, such as those of k-NN; ties as in ClassificationTotals."""
    check_classes(scores.shape[1])
    check_labels(labels, scores.shape[1])
    check_finite("scores", scores)
    if not len(labels):
        raise InputError("no image was evaluated: expected at least 1")
    rank = _rank(scores, labels)
    return {"images": len(labels), "top1": float((rank < 1).mean()), "top5": float((rank < TOP).mean())}


def reported_accuracies(metrics: Mapping[str, int | float], classes: int) -> dict[str, int | float]:
    """top1 of `metrics`, and top5 where there are more than ten classes."""
    return {key: metrics[key] for key in (("top1", "top5") if classes > TOP5_ABOVE else ("top1",))}


def _rank(scores: Float[np.ndarray, "n classes"], labels: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
    """The number of classes that come before the true class."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def evaluate(
    forward: Callable[[Any, Array], Float[Array, "b classes"]],
    params: Any,
    batches: Iterable[LabelledBatch],
    place: Place,
    *,
    predictions: bool = False,
) -> Evaluation:
    """The classifier forward(params, images) -> logits on all valid images of `batches`.

    Compiled and placed as in `model_outputs`. `predictions`: keep the answer for each image. Raises InputError for no
    images, for labels that the head does not have and for logits that are not finite, naming the image by its row over
    all batches.
    """
    totals: ClassificationTotals | None = None
    kept: list[Predictions] = []
    for logits, labels, valid in model_outputs(forward, params, batches, place):
        totals = totals or ClassificationTotals(logits.shape[1])
        of_batch = totals.add(logits, labels, valid)
        if predictions:
            kept.append(of_batch)
    if totals is None:
        raise InputError("no image was evaluated: expected at least 1")
    joined = Predictions(*map(np.concatenate, zip(*kept))) if predictions else None
    return Evaluation(totals.metrics(), totals.confusion, joined)
