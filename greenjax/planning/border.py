"""The dense plan of windows that zeros fill up at the border of a grid: `model.border` = "pad".

These zeros attend as tokens do. It is how torchvision, mmdetection and the official Swin for detection treat grids
that are no multiple of the window. A visible set has no such border, so there are only dense plans of this kind.
"""

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Int

from greenjax.planning.plan import Grouping, Plan, StageSpec, Windows, neighbourhoods_of
from greenjax.planning.tokens import TokenGrid


def padded_plan(grid: TokenGrid, specs: Sequence[StageSpec]) -> Plan:
    """The plan in which every unit is visible and every window is whole."""
    units = np.arange(np.prod(grid.units), dtype=np.int32)
    windows = tuple(tuple(padded_grouping(grid, i, each) for each in spec.windows) for i, spec in enumerate(specs))
    neighbours = tuple(tuple(each.of(units) for each in stage) for stage in neighbourhoods_of(grid, specs))
    return Plan(units, units[:0], windows, neighbours)


def padded_grouping(grid: TokenGrid, stage: int, windows: Windows) -> Grouping:
    """Every token of a stage, and zeros up to whole windows, one window a row.

    A shift is a roll of the filled grid: the last windows of an axis then hold places of both its ends, which do not
    see each other. The zeros are numbered from n on, `slot` has them behind the n tokens. Tokens that do not exist fill
    rows of their own, with window -1. All rows have the one row of `position`.
    """
    places, exists = grid.coordinates(stage).reshape(-1, 2), grid.exists(stage).ravel()
    sides, n = windows[:2], len(places)
    rows, columns = (-(-length // side) * side for length, side in zip(grid.shape(stage), sides))
    number = np.full((rows, columns), -1)
    number[tuple(places[exists].T)] = np.flatnonzero(exists)
    zeros = np.count_nonzero(number < 0)
    number[number < 0] = n + np.arange(zeros)
    row, column = (
        (np.arange(length) - shift) // side + 1 for length, side, shift in zip((rows, columns), sides, windows.shift)
    )
    region = row[:, None] * (column[-1] + 1) + column
    token, window = (_windows(np.roll(each, [-s for s in windows.shift], (0, 1)), windows) for each in (number, region))

    absent = np.flatnonzero(~exists)
    absent = np.append(absent, np.full(-len(absent) % token.shape[1], n + zeros)).reshape(-1, token.shape[1])
    token, window = np.append(token, absent, axis=0), np.append(window, np.full_like(absent, -1), axis=0)
    slot = np.empty(n + zeros + 1, np.int32)
    slot[token.ravel()] = np.arange(token.size)
    position = np.arange(token.shape[1], dtype=np.int32)[None]
    return Grouping(token.astype(np.int32), slot[:-1], window.astype(np.int32), position)


def _windows(places: Int[np.ndarray, "h w"], windows: Windows) -> Int[np.ndarray, "g s"]:
    """A grid cut into windows, row by row."""
    return rearrange(places, "(y i) (x j) -> (y x) (i j)", i=windows.rows, j=windows.columns)
