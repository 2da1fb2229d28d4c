"""Positions of tokens: fixed codes of sines and cosines, and learnt ones in files and for other grids. NumPy only.

Learnt positions are an array `positions` [rows, columns, c]; files hold [1, n, c].
"""

import math
from functools import cache

import numpy as np
from jaxtyping import Float, Float32
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.rules import Resizing, Shape
from greenjax.errors import InputError

POSITIONS = "positions"


@cache
def sine_cosine_positions(rows: int, columns: int, dim: int) -> Float32[np.ndarray, "u c"]:
    """Fixed 2-D position codes of units in raster order: half of the channels for the column, half for the row.

    Each half is [sin | cos] with frequencies omega_i = 10000 ** (-i / (dim / 4)). Source: MAE (arXiv 2111.06377).
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    angles = [axis[:, None] * omega for axis in (column, row)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def positions_to_torch(config: ConfigDict, x: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "1 n c"]:
    return x.reshape(1, -1, x.shape[2])


def positions_from_torch(config: ConfigDict, x: Float[np.ndarray, "1 n c"]) -> Float[np.ndarray, "h w c"]:
    """Raises InputError for positions neither of this grid nor of a square one: their number tells no other grid."""
    n, (rows, columns) = x.shape[1], token_grid(config).shape(0)
    if n != rows * columns:
        rows = columns = math.isqrt(n)
    if n != rows * columns:
        raise InputError(
            f"the file has {n} positions, of a grid that is not square, and image_size is {config.image_size}:"
            " expected the image_size of the file, or a file of a square grid"
        )
    return x.reshape(rows, columns, -1)


def check_grid(name: str, x: Float[np.ndarray, "h w c"]) -> None:
    """Raises InputError for positions of a file that does not say their grid, where a square one has as many."""
    rows, columns = x.shape[:2]
    side = math.isqrt(rows * columns)
    if rows != columns and side**2 == rows * columns:
        raise InputError(
            f"{name} are {side**2} positions, and the file does not say whether of {side} x {side} or of"
            f" {rows} x {columns} tokens: expected another image_size, or a file of greenjax, *.safetensors, which says"
        )


def _fits(found: Shape, wanted: Shape) -> bool:
    return len(found) == 3 and found[2] == wanted[2]


def _resized(positions: Float[np.ndarray, "h w c"], wanted: Shape, method: str) -> Float[np.ndarray, "h2 w2 c"]:
    """Bicubic with antialiasing, as timm's resample_abs_pos_embed. Raises InputError for method "none"."""
    import jax  # the command line knows the layouts without it

    if method == "none":
        raise InputError(
            f"the grid of tokens is {_named(positions.shape)} in the weights, {_named(wanted)} here, and resize is"
            " 'none': expected the same"
        )
    return np.asarray(jax.image.resize(positions, wanted, jax.image.ResizeMethod.CUBIC, antialias=True))


def _line(found: Shape, wanted: Shape, method: str) -> str:
    del method
    return f"positions resized (bicubic) from {_named(found)} to {_named(wanted)} tokens"


def _named(shape: Shape) -> str:
    return f"{shape[0]} x {shape[1]}"


RESIZING = Resizing(POSITIONS, _fits, _resized, _line)
