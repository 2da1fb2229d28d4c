"""Masks: how many units are visible, and which."""

import math

import numpy as np
from jaxtyping import Bool

from greenjax.errors import InputError


def visible_count(units: int, ratio: float) -> int:
    """Units that stay visible when the share `ratio` of `units` is masked: 12 of 49 at 0.75.

    Raises InputError if that leaves none or all of them.
    """
    count = math.floor(units * (1 - ratio) + 1e-6)
    if not 1 <= count < units:
        found = "none visible" if count < 1 else "none masked"
        expected = f"one that leaves visible and masked units: of {units} units it leaves {found}"
        raise InputError(f"mask.ratio is {ratio}: expected {expected}")
    return count


def draw_visible(rng: np.random.Generator, units: tuple[int, int], count: int) -> Bool[np.ndarray, "h w"]:
    """A uniformly random choice of `count` visible units (True = the encoder sees it)."""
    visible = np.zeros(units[0] * units[1], bool)
    visible[rng.permutation(visible.size)[:count]] = True
    return visible.reshape(units)
