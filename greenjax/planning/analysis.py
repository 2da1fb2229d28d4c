"""Measures of the static layouts of a run: padding, cost against Algorithm 1, masks that do not fit."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from greenjax.planning.grouping import layout_cost, optimal_grouping, pack
from greenjax.planning.plan import GroupLayout, WindowPartition, packing_for
from greenjax.planning.planner import Planner, simulated_masks

OPTIMA = 100  # masks for which Algorithm 1 is run, as many as in the paper's figure 4
TIMED = 200  # masks planned to measure the time
FRESH = 1  # seed of the simulated masks; layouts were chosen by those of seed 0


class LayoutFacts(NamedTuple):
    """One window partition under its layout. Costs are multiplications of one attention layer."""

    partition: WindowPartition
    layout: GroupLayout
    tokens: int  # visible, of one mask
    cost: int
    optimal_slots: tuple[int, ...]  # Algorithm 1's choice, by mask
    optimal_cost: float  # of Algorithm 1, the mean over masks
    harder: float  # share of masks for which repeating Eq. 7 needs more groups than there are
    lost: float  # share of masks for which no packing was found

    @property
    def padding(self) -> float:
        """Share of slots that hold no token."""
        return 1 - self.tokens / (self.layout.slots * self.layout.groups)

    @property
    def moves(self) -> bool:
        """Whether tokens are gathered into rows; one row of all tokens is not gathered."""
        return self.layout != (self.tokens, 1)


class Analysis(NamedTuple):
    """The analysis of a planner by simulated masks."""

    facts: tuple[tuple[LayoutFacts, ...], ...]  # by stage and partition
    masks: int
    redrawn: float  # share of masks that do not fit the layouts of all stages
    milliseconds: float  # to draw and plan one mask, the median


def analyse(planner: Planner, channels: Sequence[int], masks: int) -> Analysis:
    """Simulates `masks` fresh masks under the planner's layouts; `channels` are those of each stage."""
    visible = simulated_masks(planner.grid.units, planner.visible, masks, FRESH, planner.block)
    redrawn = np.zeros(masks, bool)
    facts = []
    for width, partitions, layouts in zip(channels, planner.partitions, planner.layouts, strict=True):
        of_stage = []
        for partition, layout in zip(partitions, layouts, strict=True):
            harder, lost = _misfits(partition, layout, visible)
            redrawn |= lost
            found = _layout_facts(partition, layout, visible[:OPTIMA], width)
            of_stage.append(found._replace(harder=float(harder.mean()), lost=float(lost.mean())))
        facts.append(tuple(of_stage))
    return Analysis(tuple(facts), masks, float(redrawn.mean()), planning_time(planner, min(masks, TIMED)))


def cost_ratio(analysis: Analysis) -> float:
    """The cost of the window attention of all blocks over the mean cost of Algorithm 1's groupings."""
    facts = [each for stage in analysis.facts for each in stage]
    ours = sum(each.partition.windows.blocks * each.cost for each in facts)
    return ours / sum(each.partition.windows.blocks * each.optimal_cost for each in facts)


def planning_time(planner: Planner, masks: int) -> float:
    """Milliseconds to draw and plan one mask, the median of `masks`."""
    times = []
    for index in range(masks):
        start = time.perf_counter()
        planner.held_out_plans(index, 1)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _misfits(
    partition: WindowPartition, layout: GroupLayout, visible: Bool[np.ndarray, "m h w"]
) -> tuple[Bool[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """The masks that Eq. 7 alone cannot pack into the layout, and those of them that no search can."""
    harder, lost = np.zeros(len(visible), bool), np.zeros(len(visible), bool)
    if layout.groups > 1:
        for index, sizes in enumerate(partition.sizes(visible)):
            harder[index] = sizes.max() > layout.slots or len(pack(sizes.tolist(), layout.slots)) > layout.groups
            lost[index] = harder[index] and packing_for(sizes, layout) is None
    return harder, lost


def _layout_facts(
    partition: WindowPartition, layout: GroupLayout, visible: Bool[np.ndarray, "m h w"], channels: int
) -> LayoutFacts:
    sizes: Int[np.ndarray, "m windows"] = partition.sizes(visible)
    tokens = int(sizes[0].sum())
    optima = [optimal_grouping(row.tolist(), channels) for row in sizes]
    return LayoutFacts(
        partition,
        layout,
        tokens,
        cost=layout_cost(tokens, layout.slots, layout.groups, channels),
        optimal_slots=tuple(optimum.slots for optimum in optima),
        optimal_cost=statistics.fmean(optimum.cost for optimum in optima),
        harder=0.0,
        lost=0.0,
    )
