"""Masks: how many units are visible, and which."""

import math

import numpy as np
from jaxtyping import Bool, Int

from greenjax.errors import InputError


def visible_count(units: int, ratio: float) -> int:
    """Units that stay visible when the share `ratio` of `units` is masked: 12 of 49 at 0.75.

    Raises InputError if that leaves none or all of them.
    """
    if not math.isfinite(ratio):
        raise InputError(f"mask.ratio is {ratio}: expected a number between 0 and 1")
    count = math.floor(units * (1 - ratio) + 1e-6)
    if not 1 <= count < units:
        found = "none visible" if count < 1 else "none masked"
        expected = f"one that leaves visible and masked units: of {units} units it leaves {found}"
        raise InputError(f"mask.ratio is {ratio}: expected {expected}")
    return count


def draw_visible(
    rng: np.random.Generator, units: tuple[int, int], count: int, block: int = 1
) -> Bool[np.ndarray, "h w"]:
    """A random choice of `count` visible units (True = the encoder sees it), every unit with the same probability.

    `block` above 1 masks whole blocks of block x block units on a randomly offset grid, cut at the border. One block is
    masked in part, so that exactly `count` units stay visible: in random units of it.
    """
    visible = np.zeros(units[0] * units[1], bool)
    if block == 1:
        visible[rng.permutation(visible.size)[:count]] = True
        return visible.reshape(units)
    row, column = ((np.arange(side) + start) // block for side, start in zip(units, rng.integers(block, size=2)))
    number = (row[:, None] * (column[-1] + 1) + column).ravel()  # of the block of each unit
    sizes = np.bincount(number)
    masked = masked_by_block(rng, sizes, visible.size - count)
    visible[masked[number] == 0] = True
    for cut in np.flatnonzero((masked > 0) & (masked < sizes)):
        visible[rng.permutation(np.flatnonzero(number == cut))[masked[cut] :]] = True
    return visible.reshape(units)


def masked_by_block(
    rng: np.random.Generator, sizes: Int[np.ndarray, " blocks"], masked: int
) -> Int[np.ndarray, " blocks"]:
    """How many units of each block are masked: none or all of them, but in one block; `masked` in all.

    Blocks that are drawn until enough units are masked would leave small ones, at the border, visible more often. The
    pivotal method (Deville and Tille, Biometrika 1998) masks every unit equally often: each block starts with the same
    masked share; then two blocks at a time, in random order, one gives to the other until it is empty or the other is
    full. Which one gives is drawn so that the expected share of both stays the same.
    """
    total = int(sizes.sum())
    full, fill = (sizes * total).tolist(), (sizes * masked).tolist()  # in units / total, to be exact
    first, *others = rng.permutation(sizes.size).tolist()
    for other in others:
        gain, loss = min(full[first] - fill[first], fill[other]), min(fill[first], full[other] - fill[other])
        change = gain if rng.integers(gain + loss) < loss else -loss
        fill[first] += change
        fill[other] -= change
        if fill[first] in (0, full[first]):
            first = other
    return np.array(fill) // total
