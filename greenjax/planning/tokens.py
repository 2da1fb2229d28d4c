"""The token order, which every other module relies on.

Masks are drawn over units: a unit is one token of the last stage, `patch * 2 ** (stages - 1)` pixels a side, and
is visible or masked as a whole. Tokens are kept *unit-major*: the visible units in raster order and, inside a unit,
the recursive 2x2 order down to the token, in which the four children of a block are enumerated column by column,

    (0, 0) (1, 0) (0, 1) (1, 1)    as (row, column).

Hence every 2x2 block (patch merging), every sr x sr block with sr a power of two (Twins' sub-sampling) and every
patch is a run of neighbours, and a layer whose kernel equals its stride is a `reshape` and a matrix product on
visible tokens, exactly and without an index. The children are enumerated as Swin's patch merging concatenates them,
so its `reduction` weight is used as it is.

Do not assume that tokens of one row of the image, or of one window, are neighbours: they are not. `to_unit_major` and
`to_grid` convert between the orders; both only reshape and transpose, and work on NumPy and JAX arrays alike.

An image that is no multiple of the unit is filled up to whole units (`padded`): its grids end inside the last units,
whose tokens beyond them do not exist. They stand in their places, and no token that exists reads them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from greenjax.errors import InputError


@dataclass(frozen=True)
class TokenGrid:
    """The grids of tokens that a hierarchical backbone puts over an image.

    `height` and `width` are pixels, multiples of `unit` unless `padded`; `patch` is the side of a first-stage token in
    pixels. Where `padded`, zeros fill up a grid to whole windows, in which they attend, and to whole 2x2 blocks.
    """

    height: int
    width: int
    patch: int
    stages: int
    padded: bool = False
    unpooled: int = 0  # the last stages that keep the grid of the one before: units have more than one token there

    def __post_init__(self):
        size = self.height, self.width
        if self.padded and min(size) < self.patch:
            raise InputError(f"image_size is {size}: expected at least one patch, {self.patch} pixels, a side")
        if not self.padded and not self.whole:
            unit = f"{self.unit} (patch {self.patch}, {self.stages} stages)"
            raise InputError(f"image_size is {size}: expected multiples of the mask unit, {unit}")

    @property
    def unit(self) -> int:
        """Side of a mask unit in pixels: one token of the last stage, but where that is `unpooled`."""
        return self.patch * 2 ** (self.stages - 1)

    @property
    def units(self) -> tuple[int, int]:
        """Rows and columns of units."""
        return self._shape(self.unit // self.patch)

    @property
    def pixels(self) -> int:
        """Side of a token of the last stage in pixels."""
        return self.unit // self.side(-1)

    @property
    def whole(self) -> bool:
        """Is the image a multiple of the unit, so that every token exists?"""
        return min(self.height, self.width) > 0 and not (self.height % self.unit or self.width % self.unit)

    def side(self, stage: int) -> int:
        """Tokens of a stage along one side of a unit; stage -1 is the last."""
        return 2 ** max(self.unpooled, self.stages - 1 - stage % self.stages)

    def shape(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's grid of tokens. Pixels that fill no patch are left out."""
        return self._shape(self.unit // self.patch // self.side(stage))

    def _shape(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of squares of `tokens` tokens of the first stage a side."""
        rows, columns = (-(-(pixels // self.patch) // tokens) for pixels in (self.height, self.width))
        return rows, columns

    def tokens_per_unit(self, stage: int) -> int:
        return self.side(stage) ** 2

    def coordinates(self, stage: int) -> Int[np.ndarray, "u t 2"]:
        """Row and column in the stage's grid of every token, by unit and by place inside the unit."""
        rows, columns = self.units
        side = self.side(stage)
        corner = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 1, 2)
        return corner * side + block_order(side)

    def raster(self, stage: int) -> Int[np.ndarray, "u t"]:
        """The number of every token in the raster order of the stage's grid, by unit and by place inside the unit."""
        row, column = np.moveaxis(self.coordinates(stage), -1, 0)
        return row * self.shape(stage)[1] + column

    def exists(self, stage: int) -> Bool[np.ndarray, "u t"]:
        """Whether a token lies on the stage's grid, by unit and by place inside the unit."""
        return np.all(self.coordinates(stage) < self.shape(stage), axis=-1)


def block_order(side: int) -> Int[np.ndarray, "t 2"]:
    """Row and column of the tokens of a `side` x `side` block in recursive 2x2 order; `side` is a power of two."""
    order = np.zeros((1, 2), np.int64)
    children = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
    for _ in range(side.bit_length() - 1):
        order = (2 * order[:, None] + children).reshape(-1, 2)
    return order


def to_unit_major(grid: Any, unit: int, leaf: int = 1) -> Any:
    """[b, h, w, c] -> [b, units, leaves, leaf * leaf * c]: cuts a grid into units, and units into leaves.

    `unit` and `leaf` are sides in elements of the grid: pixels for images, tokens for a stage's map. A leaf keeps its
    elements in raster order (row, column, channel), leaves stand in recursive 2x2 order, units in raster order.
    """
    b, h, w, c = grid.shape
    halvings = (unit // leaf).bit_length() - 1
    split = grid.reshape(b, h // unit, *[2] * halvings, leaf, w // unit, *[2] * halvings, leaf, c)
    rows, columns = range(1, halvings + 3), range(halvings + 3, 2 * halvings + 5)
    inner = [axis for level in range(1, halvings + 1) for axis in (columns[level], rows[level])]
    order = (0, rows[0], columns[0], *inner, rows[-1], columns[-1], 2 * halvings + 5)
    return split.transpose(order).reshape(b, (h // unit) * (w // unit), 4**halvings, leaf * leaf * c)


def to_grid(tokens: Any, units: tuple[int, int], side: int) -> Any:
    """[b, units * side * side, c] -> [b, h, w, c]: unit-major tokens of all units back on their grid."""
    b, _, c = tokens.shape
    rows, columns = units
    halvings = side.bit_length() - 1
    split = tokens.reshape(b, rows, columns, *[2] * (2 * halvings), c)
    row_axes = [4 + 2 * level for level in range(halvings)]
    column_axes = [3 + 2 * level for level in range(halvings)]
    order = (0, 1, *row_axes, 2, *column_axes, 3 + 2 * halvings)
    return split.transpose(order).reshape(b, rows * side, columns * side, c)
