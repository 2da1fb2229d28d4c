"""Swin's tables of relative position bias: the buffers that go with them in PyTorch, and tables of other windows.

A table of a window of side w has a row for each of (2 w - 1) x (2 w - 1) offsets, row by row, and a column a head.
Strict loading needs the buffers in a file. The buffers of a file are not read: they are compared with its windows.
"""

import math
from itertools import accumulate

import numpy as np
from einops import rearrange
from jaxtyping import Float, Float32, Int64
from ml_collections import ConfigDict

from greenjax.backbones.rules import Shape, Tensors
from greenjax.backbones.windows import windowed_stages
from greenjax.errors import InputError

BIAS_TABLE, INDEX, MASK = "relative_position_bias_table", "relative_position_index", "attn_mask"


def window_of(offsets: int) -> int | None:
    """Side of the window whose table has this many rows; None where there is no such window."""
    side = math.isqrt(offsets)
    return (side + 1) // 2 if side * side == offsets and side % 2 else None


# Buffers.


def position_buffers(
    config: ConfigDict, block: str, *, flat: bool = False, masks: bool = False
) -> dict[str, np.ndarray]:
    """The buffers of every block. `block` is the name of its attention, with {i}, {odd} and {j} as in rules.py."""
    found = {}
    for stage in windowed_stages(config):
        i, side = stage.number, stage.side
        index = relative_position_index(side)
        for j in range(stage.depth):
            name = block.format(i=i, j=j, odd=2 * i + 1)
            found[f"{name}.{INDEX}"] = index.ravel() if flat else index
            if masks and stage.shifted and j % 2:
                found[f"{name.removesuffix('.attn')}.{MASK}"] = attention_mask((stage.rows, stage.columns), side)
    return found


def relative_position_index(window: int) -> Int64[np.ndarray, "n n"]:
    """Row of the bias table for query i and key j of a window, positions in raster order."""
    row, column = np.divmod(np.arange(window**2), window)
    dy, dx = (axis[:, None] - axis[None] + window - 1 for axis in (row, column))
    return dy * (2 * window - 1) + dx


def attention_mask(grid: tuple[int, int], window: int) -> Float32[np.ndarray, "windows n n"]:
    """The mask that the official Swin adds to the logits of shifted windows: -100 where two tokens were no neighbours.

    After the roll by half a window, the last window of an axis holds tokens of both ends of the grid.
    """
    shift = window // 2

    def regions(size: int) -> np.ndarray:
        at = np.arange(size)
        return (at >= size - window).astype(int) + (at >= size - shift)

    region = 3 * regions(grid[0])[:, None] + regions(grid[1])[None]
    region = rearrange(region, "(h y) (w x) -> (h w) (y x)", y=window, x=window)
    return np.where(region[:, :, None] == region[:, None, :], 0, -100).astype(np.float32)


def check_index(name: str, tensors: Tensors) -> None:
    """Raises InputError where the index in a file is not that of its table's window.

    Else the rows of the table would belong to other offsets.
    """
    value = tensors[name]
    window = round(value.size**0.25)
    if value.size != window**4 or not np.array_equal(value.ravel(), relative_position_index(window).ravel()):
        raise InputError(
            f"{name} {list(value.shape)} in the file is not that of a Swin window: expected row * (2 w - 1) + column"
        )
    table = tensors.get(name.removesuffix(INDEX) + BIAS_TABLE)
    if table is not None and window_of(len(table)) != window:
        raise InputError(
            f"{name} in the file is that of a window of {window}, but its {BIAS_TABLE} has"
            f" {len(table)} rows: expected {(2 * window - 1) ** 2}"
        )


def check_mask(name: str, tensors: Tensors) -> None:
    """Raises InputError where the mask in a file is not that of shifted windows.

    A file has the number of windows, not their grid: one of the grids of that many windows has to fit.
    """
    value = tensors[name]
    windows, n = len(value), value.shape[-1]
    window = round(n**0.5)
    grids = [(a * window, windows // a * window) for a in range(1, windows + 1) if windows % a == 0]
    if (
        value.shape != (windows, n, n)
        or window**2 != n
        or not any(np.array_equal(value, attention_mask(grid, window)) for grid in grids)
    ):
        raise InputError(
            f"{name} {list(value.shape)} in the file is not the mask of windows shifted by half their side"
        )


# Tables of other windows.


def can_resize(found: Shape, wanted: Shape) -> bool:
    """Is one the shape of a table of some window, with the heads of the other?"""
    return len(found) == 2 and window_of(found[0]) is not None and found[1] == wanted[1]


def resizing_line(found: Shape, wanted: Shape, method: str) -> str:
    """The line of a report on resized tables."""
    (source, before), (target, after) = ((window_of(rows), math.isqrt(rows)) for rows in (found[0], wanted[0]))
    offsets = f"{before} x {before} to {after} x {after} offsets"
    return f"position bias tables resized ({method}) from window {source} to {target}, {offsets}"


def resized_table(table: Float[np.ndarray, "offsets k"], wanted: Shape, method: str) -> Float[np.ndarray, "offsets2 k"]:
    """The table of another window, by "geometric" or "bicubic" interpolation of its picture of offsets.

    Raises InputError for a table of no window or of too small a one, and for method "none".
    """
    source, target = window_of(len(table)), window_of(wanted[0])
    if source is None or target is None:
        raise InputError(f"a relative position bias table has {len(table)} rows: no window has so many offsets")
    if source == target:
        return table
    if method not in (methods := {"geometric": geometric, "bicubic": bicubic}):
        raise InputError(
            f"the window is {source} in the weights, {target} here, and resize is {method!r}: expected the same"
        )
    return methods[method](table, source, target)


def geometric(table: Float[np.ndarray, "offsets k"], source: int, target: int) -> Float[np.ndarray, "offsets2 k"]:
    """A cubic spline through offsets spaced geometrically over the target's range: near ones keep their distance.

    Beyond the outermost offset its value holds. Source: BEiT (arXiv 2106.08254), as SimMIM and timm fine-tune with it.
    """
    if source < 3:
        raise InputError(f"the window is {source} in the weights: expected at least 3 for a geometric resize")
    from scipy.interpolate import RectBivariateSpline  # its import takes a third of a second

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

    The ratio q, between 1.01 and 1.5, takes the last one to the target's last; bisection finds it to 1e-6.
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
    import jax  # the command line knows the layouts without it

    side, heads = 2 * target - 1, table.shape[1]
    picture = table.reshape(2 * source - 1, 2 * source - 1, heads)
    resized = jax.image.resize(picture, (side, side, heads), jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=False)
    return np.asarray(resized).reshape(-1, heads)
