"""The planner of a run: it draws masks and plans them, as pure functions of (seed, step, mask group)."""

import hashlib
import json
import secrets

import numpy as np
from absl import logging
from jaxtyping import Bool, Int32

from greenjax.errors import InputError
from greenjax.planning.layout import choose_layouts
from greenjax.planning.masking import draw_visible
from greenjax.planning.plan import (
    GroupLayout,
    Layouts,
    Plan,
    Specs,
    make_plan,
    neighbourhoods_of,
    packings_of,
    partitions_of,
    repeated_plan,
    stack_plans,
)
from greenjax.planning.tokens import TokenGrid
from greenjax.runtime.cache import cache_folder
from greenjax.runtime.files import replacing

SIMULATED_MASKS = 1000
TOLERANCE = 0.005  # share of simulated masks that layouts may lose
LIMIT = 0.01  # share of redrawn masks above which a run is refused
CACHE_VERSION = 2  # raise it when layouts are chosen differently

# Distinct random streams: training masks, pooled masks, held-out masks, simulated masks.
TRAIN, POOL, HELD_OUT, SIMULATION = range(4)


class Planner:
    """Draws the masks of a run and plans them. Small and picklable: data workers hold one.

    Masks are pure functions of (seed, step, mask group). A mask that does not fit the static layouts is redrawn from
    the same stream, and counted.
    """

    def __init__(
        self, grid: TokenGrid, specs: Specs, layouts: Layouts, visible: int, seed: int, pool: int = 0, block: int = 1
    ):
        """`visible` units of a mask, in blocks of `block` a side; `pool`: the number of distinct masks, 0: no bound."""
        self.grid, self.visible, self.block, self.layouts = grid, visible, block, layouts
        self.seed, self.pool = seed, pool
        self.partitions, self.neighbourhoods = partitions_of(grid, specs), neighbourhoods_of(grid, specs)
        self._pooled: dict[int, tuple[Plan, int]] = {}

    def plans(self, step: int, groups: int, own: range | None = None) -> tuple[Plan, Int32[np.ndarray, " m"]]:
        """The plans of a training step, one a mask group, and how many masks of each were redrawn.

        `own`: the mask groups to plan; None: all.
        """
        own = own or range(groups)
        if self.pool:
            ids = self.mask_ids(step, groups)
            return _stacked([self._from_pool(ids[group]) for group in own])
        return _stacked([self.draw((self.seed, TRAIN, step, group)) for group in own])

    def example(self, groups: int) -> Plan:
        """One plan, the same for all mask groups, for its shapes: views, so that no other mask is drawn."""
        return repeated_plan(self.draw((self.seed, TRAIN, 0, 0))[0], groups)

    def held_out_plans(self, step: int, groups: int, own: range | None = None) -> tuple[Plan, Int32[np.ndarray, " m"]]:
        """The plans of a batch of held-out images, whose masks are always the same."""
        return _stacked([self.draw((self.seed, HELD_OUT, step, group)) for group in own or range(groups)])

    def mask_ids(self, step: int, groups: int) -> list[int]:
        """Which mask of the pool each mask group of a step takes; without a pool every mask is new."""
        if not self.pool:
            return list(range(step * groups, (step + 1) * groups))
        return np.random.default_rng((self.seed, TRAIN, step)).integers(self.pool, size=groups).tolist()

    def draw(self, key: tuple[int, ...], attempts: int = 100) -> tuple[Plan, int]:
        """One plan from the stream named by `key`, and how many masks were redrawn on the way."""
        rng = np.random.default_rng(key)
        for redrawn in range(attempts):
            plan = self.plan(draw_visible(rng, self.grid.units, self.visible, self.block))
            if plan is not None:
                return plan, redrawn
        raise RuntimeError(f"{attempts} masks in a row did not fit the layouts {self.layouts}")

    def plan(self, visible: Bool[np.ndarray, "h w"]) -> Plan | None:
        """The plan of one mask, or None if it does not fit the layouts."""
        return make_plan(visible, self.partitions, self.layouts, self.neighbourhoods)

    def _from_pool(self, index: int) -> tuple[Plan, int]:
        if index not in self._pooled:
            self._pooled[index] = self.draw((self.seed, POOL, index))
        return self._pooled[index]


def _stacked(drawn: list[tuple[Plan, int]]) -> tuple[Plan, Int32[np.ndarray, " m"]]:
    plans, redrawn = zip(*drawn, strict=True)
    return stack_plans(plans), np.array(redrawn, np.int32)


def simulated_masks(
    units: tuple[int, int], visible: int, masks: int = SIMULATED_MASKS, seed: int = 0, block: int = 1
) -> Bool[np.ndarray, "m h w"]:
    """Masks as a run draws them. Layouts are chosen by those of seed 0."""
    rng = np.random.default_rng((seed, SIMULATION))
    return np.stack([draw_visible(rng, units, visible, block) for _ in range(masks)])


def cached_layouts(grid: TokenGrid, specs: Specs, visible: int, block: int) -> Layouts:
    """The layouts for a geometry, from the cache or found by simulation and then cached.

    Raises InputError if more than 1 % of the simulated masks would have to be redrawn.
    """
    windows = [[(each.rows, each.columns, each.shift) for each in spec.windows] for spec in specs]
    key = repr((CACHE_VERSION, SIMULATED_MASKS, TOLERANCE, grid, windows, visible, block))
    name = f"layouts-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        found = json.loads((cache_folder() / name).read_text())
        return tuple(tuple(GroupLayout(*layout) for layout in stage) for stage in found)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        logging.warning("the cached layouts %s cannot be read (%s); they are found again", name, error)
    masks = simulated_masks(grid.units, visible, block=block)
    partitions = partitions_of(grid, specs)
    layouts = choose_layouts(partitions, masks, TOLERANCE)
    lost = np.mean([packings_of(mask, partitions, layouts) is None for mask in masks])
    if lost > LIMIT:
        raise InputError(
            f"{lost:.1%} of the masks would be redrawn with {visible} of {grid.units[0] * grid.units[1]} units visible"
            f" in blocks of {block} and layouts {layouts}; at most {LIMIT:.0%} are allowed"
        )
    try:
        with replacing(cache_folder() / name, f".{secrets.token_hex(4)}") as draft:
            draft.write_text(json.dumps(layouts))
    except OSError as error:
        logging.info("layouts are not cached: %s", error)
    return layouts
