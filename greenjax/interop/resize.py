"""Relative position bias tables of one window for another.

Both rules take the table as a picture of (2 w - 1) x (2 w - 1) offsets, a channel a head.
"""

import math
from itertools import accumulate

import jax
import numpy as np
from jaxtyping import Float

from greenjax.errors import InputError

METHODS = ("geometric", "bicubic", "none")


def resize_table(table: Float[np.ndarray, "offsets k"], window: int, method: str) -> Float[np.ndarray, "offsets2 k"]:
    """The table for `window`, by "geometric" or "bicubic". Raises InputError where there is too little to go by."""
    source = window_of(len(table))
    if source is None:
        raise InputError(f"a relative position bias table has {len(table)} rows: no window has so many offsets")
    if source == window:
        return table
    if method == "geometric":
        return geometric(table, source, window)
    if method == "bicubic":
        return bicubic(table, source, window)
    raise InputError(
        f"the window is {source} in the weights, {window} here, and resize is {method!r}: expected the same"
    )


def window_of(offsets: int) -> int | None:
    """Side of the window whose table has this many rows, (2 w - 1) ** 2; None where there is no such window."""
    side = math.isqrt(offsets)
    return (side + 1) // 2 if side * side == offsets and side % 2 else None


def geometric(table: Float[np.ndarray, "offsets k"], source: int, target: int) -> Float[np.ndarray, "offsets2 k"]:
    """A cubic spline through offsets spaced geometrically over the target's range: near ones keep their distance.

    Source: BEiT (arXiv 2106.08254), as SimMIM and timm fine-tune with it. Beyond the outermost offset its value holds.
    """
    if source < 3:
        raise InputError(f"the window is {source} in the weights: expected at least 3 for a geometric resize")
    from scipy.interpolate import RectBivariateSpline  # a third of a second that no other run pays

    at = geometric_offsets(source, target)
    wanted = np.arange(-(target - 1), target, dtype=np.float64)
    side = 2 * source - 1
    planes = [
        RectBivariateSpline(at, at, plane)(wanted, wanted)
        for plane in np.moveaxis(table.reshape(side, side, -1), -1, 0).astype(np.float64)
    ]
    return np.stack(planes, axis=-1).reshape(-1, table.shape[1]).astype(table.dtype)


def geometric_offsets(source: int, target: int) -> Float[np.ndarray, " sides"]:
    """Where the source's 2 w - 1 offsets lie among the target's: 1, 1 + q, 1 + q + q^2, ... on both sides of 0.

    The ratio q, between 1.01 and 1.5, takes the last one to the target's last; found to 1e-6 by bisection.
    """
    low, high, middle = 1.01, 1.5, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        reached = (1 - middle ** (source - 1)) / (1 - middle)
        low, high = (low, middle) if reached > target - 1 else (middle, high)
    positive = list(accumulate(middle**n for n in range(source - 1)))
    return np.array([-x for x in reversed(positive)] + [0.0] + positive)


def bicubic(table: Float[np.ndarray, "offsets k"], source: int, target: int) -> Float[np.ndarray, "offsets2 k"]:
    """Bicubic, as Swin's supervised loader: torch.nn.functional.interpolate without aligned corners."""
    side, heads = 2 * target - 1, table.shape[1]
    picture = table.reshape(2 * source - 1, 2 * source - 1, heads)
    resized = jax.image.resize(picture, (side, side, heads), jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=False)
    return np.asarray(resized).reshape(-1, heads)
