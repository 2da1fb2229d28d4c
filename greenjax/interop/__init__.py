"""Weights to PyTorch libraries and back, by the tables of each family (backbones/*/weights.py).

Read in this order: layouts (finding one, and what its library computes otherwise), entries (which arrays become which
tensors), weights (a model's arrays), files and pickles, selection and fitting (which tensors of a file are meant),
tensors (from arrays to tensors and back), saving, loading.
"""

from greenjax.interop.heads import classes_file, initial_head
from greenjax.interop.loading import (
    initial_model,
    load,
    load_run,
    load_torch,
    read_torch,
    with_image_size,
    with_rgb,
)
from greenjax.interop.saving import extract, save_torch
from greenjax.interop.tensors import Reading

__all__ = [
    "Reading",
    "classes_file",
    "extract",
    "initial_head",
    "initial_model",
    "load",
    "load_run",
    "load_torch",
    "read_torch",
    "save_torch",
    "with_image_size",
    "with_rgb",
]
