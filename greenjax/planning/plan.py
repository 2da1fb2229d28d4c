"""From a mask to a plan: which token attends in which slot of which group.

A `Plan` is one mask as int32 index arrays. Their sizes depend on the configuration only, so the training step compiles
once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from greenjax.planning.grouping import Packing, pack, pack_harder
from greenjax.planning.sites import Pair, submanifold_index
from greenjax.planning.tokens import TokenGrid


class Windows(NamedTuple):
    """Windows of local attention: the grid of a stage cut into rows x columns tokens, moved up and left by `shift`."""

    rows: int
    columns: int
    shift: tuple[int, int] = (0, 0)
    blocks: int = 1  # blocks of the stage that attend in these windows


class StageSpec(NamedTuple):
    """The geometry that a backbone states of one stage."""

    windows: tuple[Windows, ...] = ()
    kernels: tuple[Pair, ...] = ()  # rows and columns of its submanifold convolutions


class GroupLayout(NamedTuple):
    """The static shape of one grouping: `groups` rows (the paper's n_g) of `slots` tokens (g_s)."""

    slots: int
    groups: int


class Grouping(NamedTuple):
    """Whole windows of visible tokens packed into rows of equal length (paper, section 3.3).

    `token` and `slot` are None where all visible tokens form one row in their own order: no token moves.
    Padding slots have token n, which reads zeros, window -1 and position 0. In a padded grid, the zeros beyond the
    border are tokens behind the n (`padded_grouping`).
    """

    token: Int[np.ndarray, "*m g s"] | None  # which token sits in each slot
    slot: Int[np.ndarray, "*m n"] | None  # its inverse: g * slots + s of each token
    window: Int[np.ndarray, "*m g s"]  # only slots of one window see each other
    position: Int[np.ndarray, "*m g s"]  # row * columns + column inside the window; one row where it serves all


class Plan(NamedTuple):
    """One mask as the device needs it; with a leading axis m, one mask a mask group."""

    visible_units: Int[np.ndarray, "*m v"]  # raster order
    masked_units: Int[np.ndarray, "*m u-v"]  # raster order
    windows: tuple[tuple[Grouping, ...], ...]  # by stage and partition
    neighbours: tuple[tuple[Int[np.ndarray, "*m n taps"], ...], ...] = ()  # by stage and kernel: `Neighbourhood.of`


@dataclass(frozen=True)
class WindowPartition:
    """The grid of one stage cut into windows.

    Row y belongs to window (y + -shift % rows) // rows, columns likewise. Windows at the border are cut: padding is
    never a key.
    """

    grid: TokenGrid
    stage: int
    windows: Windows

    @cached_property
    def _moved(self) -> Int[np.ndarray, "u t 2"]:
        offset = [-shift % side for shift, side in zip(self.windows.shift, self.windows[:2])]
        return self.grid.coordinates(self.stage) + np.array(offset)

    @cached_property
    def ids(self) -> Int32[np.ndarray, "u t"]:
        """The window of every token, unit-major."""
        row, column = np.moveaxis(self._moved // self.windows[:2], -1, 0)
        return (row * (column.max() + 1) + column).astype(np.int32)

    @cached_property
    def positions(self) -> Int32[np.ndarray, "u t"]:
        """The place of every token inside its window, row * columns + column."""
        row, column = np.moveaxis(self._moved % self.windows[:2], -1, 0)
        return (row * self.windows.columns + column).astype(np.int32)

    @cached_property
    def _shared(self) -> tuple[Int32[np.ndarray, "rows h"], Int32[np.ndarray, "w columns"]]:
        """How many rows of tokens a row of windows shares with one of units, and how many columns."""
        side, tables = self.grid.side(self.stage), []
        for units, window, shift in zip(self.grid.units, self.windows[:2], self.windows.shift):
            of_token = (np.arange(units * side) + -shift % window) // window
            inside = of_token.reshape(units, side, 1) == np.arange(of_token[-1] + 1)
            tables.append(inside.sum(axis=1, dtype=np.int32))
        rows, columns = tables
        return rows.T.copy(), columns

    def sizes(self, visible: Bool[np.ndarray, "*m h w"]) -> Int32[np.ndarray, "*m windows"]:
        """The paper's w_i: visible tokens of each window. A window shares a rectangle of tokens with each unit."""
        rows, columns = self._shared
        return (rows @ visible.astype(np.int32) @ columns).reshape(*visible.shape[:-2], -1)

    def group(self, visible_units: Int[np.ndarray, " v"], packing: Packing, layout: GroupLayout) -> Grouping:
        """Puts the tokens of the visible units where the packing puts their windows."""
        window = self.ids[visible_units].ravel()
        position = self.positions[visible_units].ravel()
        n = window.size
        if layout == (n, 1):
            return Grouping(None, None, window[None], position[None])
        sizes = np.bincount(window)
        start = np.zeros(sizes.size, np.int32)
        for g, row in enumerate(packing):
            ends = np.cumsum(sizes[row])
            start[row] = g * layout.slots + ends - sizes[row]
        by_window = np.argsort(window, kind="stable")
        rank = np.arange(n) - (np.cumsum(sizes) - sizes)[window[by_window]]
        slot = np.empty(n, np.int32)
        slot[by_window] = start[window[by_window]] + rank

        def fill(padding: int, values: np.ndarray) -> Int32[np.ndarray, "g s"]:
            slots = np.full(layout.groups * layout.slots, padding, np.int32)
            slots[slot] = values
            return slots.reshape(layout.groups, layout.slots)

        return Grouping(fill(n, np.arange(n)), slot, fill(-1, window), fill(0, position))


@dataclass(frozen=True)
class Neighbourhood:
    """The tokens that a submanifold convolution reads around every token of one stage.

    The table of the whole grid is made once; a mask only renumbers it. A plan holds the taps alone: the index of a
    submanifold convolution is its own inverse mirrored, and coordinates follow from the visible units.
    """

    grid: TokenGrid
    stage: int
    kernel: Pair

    @cached_property
    def table(self) -> Int32[np.ndarray, "u t taps"]:
        """Which of all tokens of the grid, unit-major, each tap of each token reads; u * t beyond the border."""
        tokens = self.grid.coordinates(self.stage)
        index = submanifold_index(tokens.reshape(-1, 2), self.grid.shape(self.stage), self.kernel)
        return index.taps.reshape(*tokens.shape[:2], -1)

    def of(self, visible_units: Int[np.ndarray, " v"]) -> Int32[np.ndarray, "n taps"]:
        """Which visible token each tap (row by row) of each visible token reads; n: masked, or beyond the border."""
        units, per_unit, taps = self.table.shape
        n = visible_units.size * per_unit
        number = np.full(units * per_unit + 1, n, np.int32)
        number[:-1].reshape(units, per_unit)[visible_units] = np.arange(n, dtype=np.int32).reshape(-1, per_unit)
        return number[self.table[visible_units]].reshape(n, taps)


Specs = Sequence[StageSpec]  # by stage
Partitions = tuple[tuple[WindowPartition, ...], ...]  # by stage
Neighbourhoods = tuple[tuple[Neighbourhood, ...], ...]  # by stage
Layouts = tuple[tuple[GroupLayout, ...], ...]  # by stage and partition


def partitions_of(grid: TokenGrid, specs: Specs) -> Partitions:
    """The window partitions of all stages."""
    return tuple(tuple(WindowPartition(grid, i, windows) for windows in spec.windows) for i, spec in enumerate(specs))


def neighbourhoods_of(grid: TokenGrid, specs: Specs) -> Neighbourhoods:
    """The neighbourhoods of all stages, one a kernel."""
    return tuple(tuple(Neighbourhood(grid, i, kernel) for kernel in spec.kernels) for i, spec in enumerate(specs))


def make_plan(
    visible: Bool[np.ndarray, "h w"], partitions: Partitions, layouts: Layouts, neighbourhoods: Neighbourhoods = ()
) -> Plan | None:
    """The plan of one mask under given layouts, or None if the windows of some stage do not fit their layout."""
    packings = packings_of(visible, partitions, layouts)
    return None if packings is None else packed_plan(visible, partitions, layouts, packings, neighbourhoods)


def packings_of(
    visible: Bool[np.ndarray, "h w"], partitions: Partitions, layouts: Layouts
) -> list[list[Packing]] | None:
    """The packings of one mask by stage and partition, or None if some windows do not fit their layout."""
    packings = []
    for of_stage in zip(partitions, layouts, strict=True):
        packings.append([])
        for partition, layout in zip(*of_stage, strict=True):
            packing = packing_for(partition.sizes(visible), layout)
            if packing is None:
                return None
            packings[-1].append(packing)
    return packings


def packed_plan(
    visible: Bool[np.ndarray, "h w"],
    partitions: Partitions,
    layouts: Sequence[Sequence[GroupLayout]],
    packings: Sequence[Sequence[Packing]],
    neighbourhoods: Neighbourhoods = (),
) -> Plan:
    """The plan of one mask whose windows are packed already, by stage and partition."""
    visible_units = np.flatnonzero(visible).astype(np.int32)
    masked_units = np.flatnonzero(~visible).astype(np.int32)
    windows = tuple(
        tuple(
            partition.group(visible_units, packing, layout)
            for partition, packing, layout in zip(*of_stage, strict=True)
        )
        for of_stage in zip(partitions, packings, layouts, strict=True)
    )
    neighbours = tuple(tuple(each.of(visible_units) for each in of_stage) for of_stage in neighbourhoods)
    return Plan(visible_units, masked_units, windows, neighbours)


def packing_for(sizes: Int[np.ndarray, " windows"], layout: GroupLayout) -> Packing | None:
    """Window indices for each row of a layout: Eq. 7 repeated, then a stronger search, else None."""
    if layout.groups == 1:
        return [np.flatnonzero(sizes).tolist()] if sizes.sum() <= layout.slots else None
    if sizes.max() > layout.slots:
        return None
    packing = pack(sizes.tolist(), layout.slots)
    if len(packing) > layout.groups:
        return pack_harder(sizes.tolist(), layout.slots, layout.groups)
    return packing


def repeated_plan(plan: Plan, groups: int) -> Plan:
    """A plan with a leading axis that repeats it for all mask groups; its leaves are views."""
    return _map_leaves(lambda leaf: np.broadcast_to(leaf, (groups, *leaf.shape)), plan)


def stack_plans(plans: Sequence[Plan]) -> Plan:
    """Plans of equal layouts as one plan whose leaves have a leading axis, one entry a mask group."""
    return _map_leaves(lambda *leaves: np.stack(leaves), *plans)


def _map_leaves(f: Callable[..., np.ndarray], *plans: Any) -> Any:
    """jax.tree.map, without JAX."""
    first = plans[0]
    if first is None:
        return None
    if isinstance(first, np.ndarray):
        return f(*plans)
    parts = [_map_leaves(f, *entries) for entries in zip(*plans, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
