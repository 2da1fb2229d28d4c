"""Positions of tokens: fixed codes of sines and cosines, and the name of learnt ones. NumPy only."""

import math
from functools import cache

import numpy as np
from jaxtyping import Float, Float32

from greenjax.errors import InputError

POSITIONS = "positions"  # an array [rows, columns, c]


@cache
def sine_cosine_positions(rows: int, columns: int, dim: int) -> Float32[np.ndarray, "u c"]:
    """Fixed 2-D position codes of units in raster order: half of the channels for the column, half for the row.

    Each half is [sin | cos] with frequencies omega_i = 10000 ** (-i / (dim / 4)). Source: MAE (arXiv 2111.06377).
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    angles = [axis[:, None] * omega for axis in (column, row)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def check_grid(name: str, x: Float[np.ndarray, "h w c"]) -> None:
    """Raises InputError for positions of a file that does not say their grid, where a square one has as many."""
    rows, columns = x.shape[:2]
    side = math.isqrt(rows * columns)
    if rows != columns and side**2 == rows * columns:
        raise InputError(
            f"{name} are {side**2} positions, and the file does not say whether of {side} x {side} or of"
            f" {rows} x {columns} tokens: expected another image_size, or a file of greenjax, *.safetensors, which says"
        )
