"""Whether images that are held out are trained on as well."""

import os
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int
from ml_collections import ConfigDict

from greenjax.data.labels import Chosen, LabelledSource, Listed
from greenjax.data.sources import FolderSource, Slice, Source


def warn_of_overlap(
    data: ConfigDict,
    train: Source | LabelledSource,
    held_out: Source | LabelledSource,
    keys: tuple[str, str] = ("split", "eval_split"),
) -> None:
    """One line where two splits, named by `keys` of `data`, have images in common."""
    split, eval_split = keys
    common = images_in_both(train, held_out)
    if common:
        found = f"{common:,} of the {len(held_out):,} images of data.{eval_split} {data[eval_split]!r}"
        where = f"data.{split} {data[split]!r}"
        logging.warning("%s are in %s too: results on them are those of training images", found, where)


def images_in_both(first: Source | LabelledSource, second: Source | LabelledSource) -> int:
    """How many images two splits of one data set have in common; images of files with other names are others."""
    (whole, rows), (other, others) = located(first), located(second)
    if isinstance(whole, np.ndarray) and isinstance(other, np.ndarray):  # digits: a few, which differ
        return len({whole[row].tobytes() for row in rows} & {other[row].tobytes() for row in others})
    if isinstance(whole, FolderSource) and isinstance(other, FolderSource) and whole != other:
        roots = [os.path.abspath(folder.root) for folder in (whole, other)]
        nested = os.path.commonpath(roots) in roots
        return len(paths(whole, rows) & paths(other, others)) if nested else 0
    same = whole == other or getattr(whole, "name", 0) == getattr(other, "name", 1)
    return len(np.intersect1d(rows, others)) if same else 0


def located(source: Any) -> tuple[Any, Int[np.ndarray, " n"]]:
    """The whole split of which `source` is a part, and which of its images it is."""
    rows = np.arange(len(source))
    while True:
        if isinstance(source, Slice):
            rows, source = rows + source.start, source.source
        elif isinstance(source, Chosen):
            rows, source = np.asarray(source.rows)[rows], source.source
        elif isinstance(source, Listed):
            source = source.images
        elif hasattr(source, "source"):  # the same images with labels
            source = source.source
        else:
            return source, rows


def paths(source: FolderSource, rows: Int[np.ndarray, " n"]) -> set[str]:
    return {os.path.abspath(source.name_of(int(row))) for row in rows}
