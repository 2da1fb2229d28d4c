"""Checks of features and labels that k-NN, probes and classifiers share."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from greenjax.data.labels import check_labels
from greenjax.errors import InputError, NotFinite

Place = Callable[[Any], Any]  # puts a host array or batch on the devices: a runtime.placement.Placement, or a part


def check_finite(name: str, values: Float[np.ndarray, "n _"], index: Integer[np.ndarray, " n"] | None = None) -> None:
    """Raises NotFinite where a row of `values` holds a NaN or an infinity; `index` as in `check_labels`."""
    # Minimum and maximum are found without a copy of a million rows.
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        row = int(np.argmin(np.isfinite(values).all(axis=1)))
        image = row if index is None else index[row]
        raise NotFinite(f"{name} of image {image} are not finite: expected those of a model that has not diverged")


def check_classes(classes: int) -> None:
    """Raises InputError for fewer classes than two."""
    if classes < 2:
        raise InputError(f"classes is {classes}: expected at least 2")


def check_features(
    features: Float[np.ndarray, "n c"], labels: Integer[np.ndarray, " n"], classes: int, least: int = 1
) -> None:
    """Raises InputError where no probe can be trained: too few images, bad labels, values that are not finite."""
    check_classes(classes)
    if len(features) < least:
        raise InputError(f"features are of {len(features)} images: expected at least {least}")
    check_labels(labels, classes)
    check_finite("features", features)


def pad_rows(rows: np.ndarray, length: int) -> np.ndarray:
    """Appends rows of zeros, up to `length`."""
    if len(rows) == length:
        return rows
    return np.concatenate((rows, np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype)))
