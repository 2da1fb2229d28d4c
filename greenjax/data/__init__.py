"""Data: from images on disk to batches of uint8 images with their masks and plans.

Read in the order of the data: sources (image files and their labels), open (splits and slices of them), encoded
(decoding), augment (the view of an image) and randaugment (more of it in fine-tuning), loader (the order of images, and
batches), workers (the processes that make them). Beside this way: labels (sets with classes), undecodable (images that
cannot be used), overlap and listing (comparisons of sources), and prepare, the command that makes records.
"""

from greenjax.data.augment import CentreView
from greenjax.data.encoded import DecodeError, Images
from greenjax.data.labels import LabelledSource, Matched, check_classes, draw_of_each_class, first_images, matched
from greenjax.data.loader import (
    Batch,
    Batches,
    LabelledBatch,
    blank_batch,
    blank_labelled_batch,
    eval_batches,
    labelled_batches,
    labelled_eval_batches,
    train_batches,
)
from greenjax.data.open import open_labelled, open_source
from greenjax.data.overlap import warn_of_overlap
from greenjax.data.undecodable import Undecodable
from greenjax.data.workers import WorkerDied, look_after_workers

__all__ = [
    "Batch",
    "Batches",
    "CentreView",
    "DecodeError",
    "Images",
    "LabelledBatch",
    "LabelledSource",
    "Matched",
    "Undecodable",
    "WorkerDied",
    "blank_batch",
    "blank_labelled_batch",
    "check_classes",
    "draw_of_each_class",
    "eval_batches",
    "first_images",
    "labelled_batches",
    "labelled_eval_batches",
    "look_after_workers",
    "matched",
    "open_labelled",
    "open_source",
    "train_batches",
    "warn_of_overlap",
]
