"""Interop: weights to PyTorch libraries and back. One table a layout says which array becomes which tensor.

Read in this order: tables (one a layout), transforms, buffers, resize, files and pickles, selection (which
tensors of a file are meant), weights (misfits are found here), loading (what the commands and the Python interface
call).
"""

from greenjax.interop.loading import (
    classes_file,
    extract,
    initial_head,
    initial_model,
    load,
    load_run,
    load_torch,
    read_torch,
    save_torch,
    with_image_size,
    with_rgb,
)
from greenjax.interop.tables import LAYOUTS

__all__ = [
    "LAYOUTS",
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
