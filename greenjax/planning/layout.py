"""Static group shapes: chosen once, before the first mask is drawn (the paper's grouping, made static).

The paper picks the group size for each mask. Here every mask of a run shares one `GroupLayout` per window partition,
so that shapes never change: masks are simulated, and the cheapest layout that holds nearly all of them is kept.
"""

import math
from functools import cache

import numpy as np
from jaxtyping import Bool, Int

from greenjax.planning.border import padded_plan
from greenjax.planning.grouping import pack, pack_harder
from greenjax.planning.plan import (
    GroupLayout,
    Layouts,
    Partitions,
    Plan,
    Specs,
    StageSpec,
    WindowPartition,
    make_plan,
    neighbourhoods_of,
    partitions_of,
    stack_plans,
)
from greenjax.planning.tokens import TokenGrid

STEP = 8  # slots are multiples of it: fused attention kernels want even lengths
MOVE = 16  # multiplications that cost as much as moving one element into its slot and back


def choose_layouts(partitions: Partitions, visible: Bool[np.ndarray, "m h w"], tolerance: float) -> Layouts:
    """The cheapest layout of every window partition that holds all of the given masks but a share `tolerance`."""
    share = tolerance / max(1, sum(map(len, partitions)))

    def layout(partition: WindowPartition) -> GroupLayout:
        return choose_layout(partition.sizes(visible), math.prod(partition.windows[:2]), share)

    return tuple(tuple(map(layout, of_stage)) for of_stage in partitions)


def choose_layout(sizes: Int[np.ndarray, "m windows"], window: int, tolerance: float) -> GroupLayout:
    """The cheapest layout that holds the windows of all masks but a share `tolerance`.

    `sizes` are visible tokens by mask and window; every mask has equally many in all. `window` is the number of tokens
    of a whole window. The layout changes two costs, because projections are applied to ungrouped tokens: attention
    inside rows, and moving q, k, v and the output. A single row of all tokens, in their own order, moves nothing.
    """

    def cost(slots: int, groups: int) -> int:  # in multiplications / (2 channels)
        return groups * slots**2 + 2 * MOVE * groups * slots

    n = int(sizes[0].sum())
    best, best_cost = GroupLayout(slots=n, groups=1), n * n
    largest = sizes.max(axis=1)
    start = int(np.quantile(largest, 1 - tolerance, method="higher"))
    exact = [start] if tolerance == 0 else []  # full windows of a dense network: no padding at all
    for slots in [*exact, *range(-(-start // STEP) * STEP, 4 * window + STEP, STEP)]:
        if n * (slots + 2 * MOVE) >= best_cost:  # longer rows cost more: groups * slots >= n
            break
        affordable = (best_cost - 1) // cost(slots, 1)
        groups = _groups_needed(sizes, slots, affordable, tolerance)
        if groups is not None:
            best, best_cost = GroupLayout(slots, groups), cost(slots, groups)
    return best


def _groups_needed(sizes: Int[np.ndarray, "m windows"], slots: int, limit: int, tolerance: float) -> int | None:
    """The fewest rows, at most `limit`, that hold all masks but a share `tolerance`; None if there are none."""
    least = -(-int(sizes[0].sum()) // slots)
    if least > limit:
        return None
    allowed = math.floor(len(sizes) * tolerance)
    too_large = sizes.max(axis=1) > slots
    fitting = [row.tolist() for row in sizes[~too_large]]
    needed = np.array([len(pack(row, slots)) for row in fitting])
    for groups in range(least, limit + 1):
        over = np.flatnonzero(needed > groups)
        # Few masks may need the stronger search: it is slow.
        if over.size > max(allowed, len(sizes) // 4):
            continue
        lost = int(too_large.sum())
        for index in over:
            lost += pack_harder(fitting[index], slots, groups) is None
            if lost > allowed:
                break
        if lost <= allowed:
            return groups
    return None


def exact_plan(grid: TokenGrid, specs: Specs, visible: Bool[np.ndarray, "m h w"]) -> Plan:
    """The plan of given masks under layouts made for just these masks, with a leading axis m; nothing is redrawn.

    With every unit visible it is the plan of the dense network.
    """
    return stack_plans(_exact_plans(grid, specs, visible))


@cache
def dense_plan(grid: TokenGrid, specs: tuple[StageSpec, ...]) -> Plan:
    """The plan of the dense network: every unit visible, full windows, no padding but that of a padded grid."""
    if grid.padded:
        return padded_plan(grid, specs)
    return _exact_plans(grid, specs, np.ones((1, *grid.units), bool))[0]


def _exact_plans(grid: TokenGrid, specs: Specs, visible: Bool[np.ndarray, "m h w"]) -> list[Plan]:
    partitions, neighbourhoods = partitions_of(grid, specs), neighbourhoods_of(grid, specs)
    layouts = choose_layouts(partitions, visible, tolerance=0.0)
    plans = []
    for mask in visible:
        plan = make_plan(mask, partitions, layouts, neighbourhoods)
        assert plan is not None  # the layouts were chosen for these masks
        plans.append(plan)
    return plans
