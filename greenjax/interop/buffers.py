"""Buffers that follow from a model's geometry: strict loading wants them in the file, so they are made for it.

What a file brings of them is checked, not read.
"""

from collections.abc import Mapping

import numpy as np
from einops import rearrange
from jaxtyping import Float32, Int64, Shaped
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.errors import InputError
from greenjax.interop.resize import window_of

Tensors = Mapping[str, Shaped[np.ndarray, "..."]]

INDEX, MASK = "relative_position_index", "attn_mask"


def relative_position_index(window: int) -> Int64[np.ndarray, "n n"]:
    """Row of the bias table for query i and key j of a window, positions in raster order."""
    row, column = np.divmod(np.arange(window**2), window)
    dy, dx = (axis[:, None] - axis[None] + window - 1 for axis in (row, column))
    return dy * (2 * window - 1) + dx


def attention_mask(grid: tuple[int, int], window: int) -> Float32[np.ndarray, "windows n n"]:
    """What the official Swin adds to the logits of shifted windows: -100 where two tokens were not neighbours.

    After the roll by half a window, the last window of an axis holds what was at its two ends.
    """
    shift = window // 2

    def regions(size: int) -> np.ndarray:
        at = np.arange(size)
        return (at >= size - window).astype(int) + (at >= size - shift)

    region = 3 * regions(grid[0])[:, None] + regions(grid[1])[None]
    region = rearrange(region, "(h y) (w x) -> (h w) (y x)", y=window, x=window)
    return np.where(region[:, :, None] == region[:, None, :], 0, -100).astype(np.float32)


def stage_windows(config: ConfigDict) -> list[tuple[int, bool]]:
    """Side of the window of each stage, and whether odd blocks shift it, by the official rule."""
    grid, window = token_grid(config), config.model.window
    shortest = [min(grid.shape(stage)) for stage in range(grid.stages)]
    return [(min(window, side), side > window > 1) for side in shortest]


def swin_buffers(config: ConfigDict, block: str, *, flat: bool = False, masks: bool = False) -> dict[str, np.ndarray]:
    """The buffers of every block; `block` is its name with {i}, {odd} and {j}, up to the attention."""
    grid, found = token_grid(config), {}
    for i, (window, shifts) in enumerate(stage_windows(config)):
        index = relative_position_index(window)
        for j in range(config.model.depths[i]):
            name = block.format(i=i, j=j, odd=2 * i + 1)
            found[f"{name}.{INDEX}"] = index.ravel() if flat else index
            if masks and shifts and j % 2:
                found[f"{name.removesuffix('.attn')}.{MASK}"] = attention_mask(grid.shape(i), window)
    return found


def check_buffers(tensors: Tensors) -> None:
    """Raises InputError where an index or a mask in a file is not what its window says: weights would mean others."""
    for name, value in tensors.items():
        if name.endswith(INDEX):
            _check_index(name, value, tensors)
        elif name.endswith(MASK):
            _check_mask(name, value)


def is_buffer(name: str) -> bool:
    return name.endswith((INDEX, MASK))


def _check_index(name: str, value: np.ndarray, tensors: Tensors) -> None:
    window = round(value.size**0.25)
    if value.size != window**4 or not np.array_equal(value.ravel(), relative_position_index(window).ravel()):
        raise InputError(
            f"{name} {list(value.shape)} in the file is not that of a Swin window: expected row * (2 w - 1) + column"
        )
    table = tensors.get(name.removesuffix(INDEX) + "relative_position_bias_table")
    if table is not None and window_of(len(table)) != window:
        raise InputError(
            f"{name} in the file is that of a window of {window}, but its relative_position_bias_table has"
            f" {len(table)} rows: expected {(2 * window - 1) ** 2}"
        )


def _check_mask(name: str, value: np.ndarray) -> None:
    """The grid is not in the file, only its number of windows: one of the grids of so many windows has to fit."""
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
