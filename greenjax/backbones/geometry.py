"""The geometry of a resolved config: its grids of tokens, its stages, its planner. NumPy only."""

import math
from typing import Any

from ml_collections import ConfigDict

from greenjax.backbones.family import Family
from greenjax.backbones.registry import family_of
from greenjax.errors import InputError
from greenjax.planning import Planner, StageSpec, TokenGrid
from greenjax.planning.masking import visible_count
from greenjax.planning.planner import cached_layouts
from greenjax.planning.sites import pair


def grid_of(image_size: tuple[int, int], model: Any) -> TokenGrid:
    """The grids of tokens that a backbone puts over an image. `model` is the model section of a config."""
    unpooled, padded = family_of(model.name).unpooled, model.border == "pad"
    kept = unpooled(model) if unpooled else 0
    return TokenGrid(*image_size, patch=model.patch, stages=len(model.depths), padded=padded, unpooled=kept)


def token_grid(config: ConfigDict) -> TokenGrid:
    """The grids of tokens that the configured backbone puts over an image."""
    return grid_of(config.image_size, config.model)


def visible_of(grid: TokenGrid, ratio: float) -> int:
    """The mask units of an image that the encoder sees where the share `ratio` is masked."""
    return visible_count(math.prod(grid.units), ratio)


def visible_units(config: ConfigDict) -> int:
    """The mask units of an image that the encoder sees in pre-training."""
    return visible_of(token_grid(config), config.mask.ratio)


def stage_specs(config: ConfigDict) -> tuple[StageSpec, ...]:
    """What the configured backbone states of its stages."""
    return specs_of(family_of(config.model.name), config.model, token_grid(config))


def specs_of(family: Family, model: Any, grid: TokenGrid) -> tuple[StageSpec, ...]:
    """What a family states of its stages. Raises InputError, which names its folder, for what no encoder can have."""
    specs, depths, channels = family.stages(model, grid), model.depths, family.channels(model)

    def refuse(stated: str, expected: str) -> None:
        raise InputError(f"{family.package} states {stated}: expected {expected}")

    if not len(specs) == len(channels) == len(depths):
        refuse(f"{len(specs)} stages and {len(channels)} channels", f"{len(depths)} of each")
    for stage, (spec, depth) in enumerate(zip(specs, depths), start=1):
        sizes = [min(each.rows, each.columns, each.blocks) for each in spec.windows]
        if min(sizes, default=1) < 1 or sum(each.blocks for each in spec.windows) > depth:
            expected = f"sides and blocks of at least 1, and no more than the {depth} blocks of the stage"
            refuse(f"windows {[tuple(each) for each in spec.windows]} for stage {stage}", expected)
        if any(side < 1 or side % 2 == 0 for kernel in spec.kernels for side in pair(kernel)):
            refuse(f"kernels {spec.kernels} for stage {stage}", "odd sides")
    return specs


def stage_channels(config: ConfigDict) -> tuple[int, ...]:
    """The channels of every stage."""
    return family_of(config.model.name).channels(config.model)


def make_planner(config: ConfigDict) -> Planner:
    """The planner of a run; layouts come from a cache on disk where they are known.

    Raises InputError if more than 1 % of the masks would have to be redrawn.
    """
    grid = token_grid(config)
    visible = visible_units(config)
    # SimMIM's encoder sees every token (the masked ones as mask tokens), so its masks need no grouping.
    specs = stage_specs(config) if config.method == "green" else ()
    pool, block = config.mask.pool, config.mask.block
    return Planner(grid, specs, cached_layouts(grid, specs, visible, block), visible, config.seed, pool, block)
