"""Classes of images without labels, by a classifier."""

from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.config import flatten, resolve
from greenjax.config.inherit import recorded
from greenjax.errors import InputError, listed
from greenjax.interop.heads import classes_file, initial_head
from greenjax.runtime.classes import output_names
from greenjax.runtime.console import say
from greenjax.tasks.inference.files import drafted
from greenjax.tasks.inference.formats import Outputs, finish_classes
from greenjax.tasks.inference.images import check_images
from greenjax.tasks.inference.model import model_of_init

TASK = "eval"  # the task of a config whose model is a classifier


def predict_files(
    config: ConfigDict, source: Any, files: Outputs, *, top: int = 1, step: int | None = None, overwrite: bool = False
) -> None:
    """Writes the `top` most probable classes of all images of a source by the classifier of `config.init`.

    A killed process goes on where it was. Raises InputError for anything that cannot be, before the first image is
    computed.
    """
    if recorded(config.init).get("task") == "detect":
        raise InputError(f"model is {config.init!r}, a detector: expected a classifier; greenjax eval runs detectors")
    head = initial_head(config)
    if head.outputs is None:
        raise InputError(
            f"model is {config.init!r}, which has no head: expected a classifier, as greenjax finetune makes"
        )
    if not 1 <= top <= head.outputs:
        raise InputError(f"top is {top}: expected 1 to {head.outputs}, the classes of {config.init!r}")
    check_images(config, source)
    config = resolve(flatten(config) | {"model.num_classes": head.outputs})
    model = model_of_init(config, len(source), step)
    if head.classes:
        say(f"classes: {listed(head.classes)}")
    else:
        say(f"the classes are numbers, as nobody names them: {str(classes_file(config.init))!r} may, with a JSON list")
    say(f"predicting the classes of {len(source):,} images ...")
    graphdef = model.graphdef
    row = np.dtype([("class", np.int32, (top,)), ("probability", np.float64, (top,))])
    about = {"top": top}
    with drafted(
        model,
        lambda params, images: nnx.merge(graphdef, params).forward(images),
        source,
        files,
        row,
        about,
        lambda logits: most_probable(logits, row),
        overwrite,
    ) as draft:
        finish_classes(draft, files, output_names(head.classes, head.outputs))


def most_probable(logits: Float[np.ndarray, "n classes"], row: np.dtype) -> np.ndarray:
    """The most probable classes of each image, as many as a row has; equally probable ones in their order."""
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    probability = odds / odds.sum(axis=1, keepdims=True)
    found = np.zeros(len(logits), row)
    best = np.argsort(-logits, axis=1, kind="stable")[:, : row["class"].shape[0]]
    found["class"], found["probability"] = best, np.take_along_axis(probability, best, axis=1)
    return found
