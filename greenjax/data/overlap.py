"""Images that two splits have in common, and the warning of held-out images that are trained on."""

from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int
from ml_collections import ConfigDict

from greenjax.data.encoded import Images
from greenjax.data.labels import LabelledSource


def warn_of_overlap(
    data: ConfigDict,
    train: Images | LabelledSource,
    held_out: Images | LabelledSource,
    keys: tuple[str, str] = ("split", "eval_split"),
) -> None:
    """Warns in one line where two splits, named by `keys` of `data`, have images in common."""
    split, eval_split = keys
    common = images_in_both(train, held_out)
    if common:
        found = f"{common:,} of the {len(held_out):,} images of data.{eval_split} {data[eval_split]!r}"
        where = f"data.{split} {data[split]!r}"
        logging.warning("%s are in %s too: results on them are those of training images", found, where)


def images_in_both(first: Images | LabelledSource, second: Images | LabelledSource) -> int:
    """How many images two splits have in common; files with other names are other images."""
    (whole, rows), (other, others) = located(first), located(second)
    return whole.in_both(rows, other, others) if type(whole) is type(other) else 0


def located(source: Any) -> tuple[Any, Int[np.ndarray, " n"]]:
    """The `Source` of which `source` is a part, and the rows that the part takes of it."""
    rows = np.arange(len(source))
    while hasattr(source, "source"):
        rows = np.asarray(source.rows)[rows] if hasattr(source, "rows") else rows
        source = source.source
    return source, rows
