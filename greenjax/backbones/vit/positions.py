"""Learnt positions in files and for other grids, of ViT and of other families that have them. NumPy only.

Here they are an array `positions` [rows, columns, c]; files hold [1, n, c].
"""

import math

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.positions import POSITIONS
from greenjax.backbones.rules import Resizing, Shape
from greenjax.errors import InputError


def positions_to_torch(config: ConfigDict, x: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "1 n c"]:
    return x.reshape(1, -1, x.shape[2])


def positions_from_torch(
    config: ConfigDict, x: Float[np.ndarray, "1 n c"], stage: int = 0
) -> Float[np.ndarray, "h w c"]:
    """Raises InputError for positions neither of the grid nor of a square one: their number tells no other grid."""
    n, (rows, columns) = x.shape[1], token_grid(config).shape(stage)
    if n != rows * columns:
        rows = columns = math.isqrt(n)
    if n != rows * columns:
        raise InputError(
            f"the file has {n} positions, of a grid that is not square, and image_size is {config.image_size}:"
            " expected the image_size of the file, or a file of a square grid"
        )
    return x.reshape(rows, columns, -1)


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
