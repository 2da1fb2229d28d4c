"""Data: from images on disk to batches of uint8 images with their masks and plans.

Read in this order: sources (where images come from), augment (what is done to them), loader (in which order).
"""

from greenjax.data.loader import Batch, eval_batches, train_batches
from greenjax.data.sources import DecodeError, Source, open_source

__all__ = ["Batch", "DecodeError", "Source", "eval_batches", "open_source", "train_batches"]
