"""From a mask to a plan: which token attends in which slot of which group.

A `Plan` is all that the device needs to know of a mask. Its leaves are int32 arrays whose sizes depend on the
configuration only, so the training step compiles once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from greenjax.planning.grouping import Packing, pack, pack_harder
from greenjax.planning.sites import submanifold_index
from greenjax.planning.tokens import TokenGrid


@dataclass(frozen=True)
class StageSpec:
    """What a backbone states of one stage."""

    window: int | None  # tokens a side of its local attention; None where there is none
    shifted: bool  # whether every second block shifts its windows
    peg: bool = False  # whether a 3 x 3 submanifold convolution, the positional encoding generator, stands in it


class GroupLayout(NamedTuple):
    """The static shape of one grouping: `groups` rows (the paper's n_g) of `slots` tokens (g_s)."""

    slots: int
    groups: int


class Grouping(NamedTuple):
    """Whole windows of visible tokens packed into rows of equal length (paper, section 3.3).

    `token` and `slot` are None where all visible tokens form one row in their own order: nothing has to move.
    Padding slots have token n, which reads zeros, window -1 and position 0.
    """

    token: Int[np.ndarray, "*m g s"] | None  # which token sits in each slot
    slot: Int[np.ndarray, "*m n"] | None  # its inverse: g * slots + s of each token
    window: Int[np.ndarray, "*m g s"]  # only slots of one window see each other
    position: Int[np.ndarray, "*m g s"]  # row * window + column inside the window


class Plan(NamedTuple):
    """Everything that the device has to know of one mask (or, with a leading axis m, of one mask a mask group)."""

    visible_units: Int[np.ndarray, "*m v"]  # raster order
    masked_units: Int[np.ndarray, "*m u-v"]  # raster order
    windows: tuple[tuple[Grouping, ...], ...]  # by stage: (regular, shifted), or (regular,) for all blocks, or ()
    neighbours: tuple[Int[np.ndarray, "*m n 9"] | None, ...] = ()  # by stage, as `Neighbourhood.of` has them


@dataclass(frozen=True)
class WindowPartition:
    """One stage's grid cut into windows of `size` tokens a side, moved up and left by `shift`.

    Row y belongs to window (y + (size - shift if shifted else 0)) // size, columns likewise. Windows at the border are
    cut: padding is never a key.
    """

    grid: TokenGrid
    stage: int
    size: int
    shift: int

    @cached_property
    def _moved(self) -> Int[np.ndarray, "u t 2"]:
        return self.grid.coordinates(self.stage) + (self.size - self.shift if self.shift else 0)

    @cached_property
    def ids(self) -> Int32[np.ndarray, "u t"]:
        """Window of every token, unit-major."""
        row, column = np.moveaxis(self._moved // self.size, -1, 0)
        return (row * (column.max() + 1) + column).astype(np.int32)

    @cached_property
    def positions(self) -> Int32[np.ndarray, "u t"]:
        """Place of every token inside its window, row * size + column."""
        row, column = np.moveaxis(self._moved % self.size, -1, 0)
        return (row * self.size + column).astype(np.int32)

    @cached_property
    def counts(self) -> Int32[np.ndarray, "u windows"]:
        """How many tokens each unit gives to each window."""
        windows = self.ids.max() + 1
        flat = np.arange(len(self.ids))[:, None] * windows + self.ids
        return np.bincount(flat.ravel(), minlength=len(self.ids) * windows).reshape(-1, windows).astype(np.int32)

    def sizes(self, visible: Bool[np.ndarray, "*m h w"]) -> Int[np.ndarray, "*m windows"]:
        """The paper's w_i: visible tokens of each window."""
        flat = visible.reshape(*visible.shape[:-2], -1)
        return flat.astype(np.int32) @ self.counts

    def group(self, visible_units: Int[np.ndarray, " v"], packing: Packing, layout: GroupLayout) -> Grouping:
        """Puts the tokens of the visible units where the packing puts their windows."""
        window = self.ids[visible_units].ravel()
        position = self.positions[visible_units].ravel()
        n = window.size
        if layout == (n, 1):
            return Grouping(None, None, window[None], position[None])
        sizes = np.bincount(window, minlength=self.counts.shape[1])
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
    """The 3 x 3 neighbours of one stage's tokens, for the positional encoding generator.

    The table of the whole grid is made once; a mask only renumbers it. A plan holds the taps alone: the index of a
    3 x 3 submanifold convolution is its own inverse mirrored, and coordinates follow from the visible units.
    """

    grid: TokenGrid
    stage: int

    @cached_property
    def table(self) -> Int32[np.ndarray, "u t 9"]:
        """Which of all tokens of the grid, unit-major, each tap of each token reads; u * t beyond the border."""
        tokens = self.grid.coordinates(self.stage)
        index = submanifold_index(tokens.reshape(-1, 2), self.grid.shape(self.stage), 3)
        return index.taps.reshape(*tokens.shape[:2], 9)

    def of(self, visible_units: Int[np.ndarray, " v"]) -> Int32[np.ndarray, "n 9"]:
        """Which visible token each tap (row by row) of each visible token reads; n where it is masked or not there."""
        units, per_unit, _ = self.table.shape
        n = visible_units.size * per_unit
        number = np.full(units * per_unit + 1, n, np.int32)
        number[:-1].reshape(units, per_unit)[visible_units] = np.arange(n, dtype=np.int32).reshape(-1, per_unit)
        return number[self.table[visible_units]].reshape(n, 9)


def neighbourhoods(grid: TokenGrid, specs: Sequence[StageSpec]) -> tuple[Neighbourhood | None, ...]:
    """By stage, the neighbourhood that its positional encoding generator needs; None where there is none."""
    return tuple(Neighbourhood(grid, stage) if spec.peg else None for stage, spec in enumerate(specs))


def partitions(grid: TokenGrid, specs: Sequence[StageSpec]) -> tuple[tuple[WindowPartition, ...], ...]:
    """By stage, the windows of its blocks: (regular, shifted), (regular,) where no block shifts, or () without windows.

    A grid that is not larger than the window on both axes gets one window size, its shorter side, and no shift, as in
    the official Swin Transformer.
    """

    def of_stage(stage: int, spec: StageSpec) -> tuple[WindowPartition, ...]:
        if spec.window is None:
            return ()
        shorter = min(grid.shape(stage))
        if shorter <= spec.window:
            return (WindowPartition(grid, stage, shorter, 0),)
        regular = WindowPartition(grid, stage, spec.window, 0)
        if not spec.shifted or spec.window < 2:
            return (regular,)
        return regular, WindowPartition(grid, stage, spec.window, spec.window // 2)

    return tuple(of_stage(stage, spec) for stage, spec in enumerate(specs))


def make_plan(
    visible: Bool[np.ndarray, "h w"],
    stages: tuple[tuple[WindowPartition, ...], ...],
    layouts: tuple[tuple[GroupLayout, ...], ...],
    nearby: tuple[Neighbourhood | None, ...] = (),
) -> Plan | None:
    """The plan of one mask under given layouts, or None if some stage's windows do not fit its layout."""
    packings = []
    for stage_partitions, stage_layouts in zip(stages, layouts, strict=True):
        of_stage = []
        for partition, layout in zip(stage_partitions, stage_layouts, strict=True):
            packing = fit(partition.sizes(visible), layout)
            if packing is None:
                return None
            of_stage.append(packing)
        packings.append(of_stage)
    return packed_plan(visible, stages, layouts, packings, nearby)


def packed_plan(
    visible: Bool[np.ndarray, "h w"],
    stages: tuple[tuple[WindowPartition, ...], ...],
    layouts: Sequence[Sequence[GroupLayout]],
    packings: Sequence[Sequence[Packing]],
    nearby: tuple[Neighbourhood | None, ...] = (),
) -> Plan:
    """The plan of one mask whose windows are packed already, by stage and partition."""
    visible_units = np.flatnonzero(visible).astype(np.int32)
    masked_units = np.flatnonzero(~visible).astype(np.int32)
    windows = tuple(
        tuple(
            partition.group(visible_units, packing, layout)
            for partition, packing, layout in zip(*of_stage, strict=True)
        )
        for of_stage in zip(stages, packings, layouts, strict=True)
    )
    neighbours = tuple(None if near is None else near.of(visible_units) for near in nearby)
    return Plan(visible_units, masked_units, windows, neighbours)


def fit(sizes: Int[np.ndarray, " windows"], layout: GroupLayout) -> Packing | None:
    """Window indices for each row of a layout: Eq. 7 repeated, then a stronger search, else None."""
    if layout.groups == 1:
        return [np.flatnonzero(sizes).tolist()] if sizes.sum() <= layout.slots else None
    if sizes.max() > layout.slots:
        return None
    packing = pack(sizes.tolist(), layout.slots)
    if len(packing) > layout.groups:
        return pack_harder(sizes.tolist(), layout.slots, layout.groups)
    return packing


def repeated_plan(plan: Any, groups: int) -> Any:
    """A plan with a leading axis that repeats it for all mask groups; its leaves are views."""
    if plan is None:
        return None
    if isinstance(plan, np.ndarray):
        return np.broadcast_to(plan, (groups, *plan.shape))
    parts = [repeated_plan(entry, groups) for entry in plan]
    return type(plan)(*parts) if hasattr(plan, "_fields") else tuple(parts)


def stack_plans(plans: Sequence[Any]) -> Any:
    """Plans of equal layouts as one plan whose leaves have a leading axis, one entry a mask group."""
    first = plans[0]
    if first is None:
        return None
    if isinstance(first, np.ndarray):
        return np.stack(plans)
    parts = [stack_plans(entries) for entries in zip(*plans, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
