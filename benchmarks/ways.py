"""Ways to group the windows of one mask: Algorithm 1, packings of simpler kinds, one group, the static layout."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from greenjax.planning.grouping import Packing, optimal_grouping, pack
from greenjax.planning.plan import GroupLayout, WindowPartition, packing_for


class Place(NamedTuple):
    """One window partition of one stage, and how many blocks attend in it."""

    partition: WindowPartition
    static: GroupLayout
    tokens: int  # visible, of one mask
    channels: int
    blocks: int


class Grouped(NamedTuple):
    """The grouping of one mask's windows at one place."""

    layout: GroupLayout
    packing: Packing


def first_fit(sizes: Sequence[int], slots: int) -> Packing:
    """Puts each window, in order, into the first group that has room for it."""
    groups, room = [], []
    for window, size in enumerate(sizes):
        if not size:
            continue
        group = next((j for j, left in enumerate(room) if size <= left), len(room))
        if group == len(room):
            groups.append([])
            room.append(slots)
        groups[group].append(window)
        room[group] -= size
    return groups


def first_fit_decreasing(sizes: Sequence[int], slots: int) -> Packing:
    """First fit, large windows first."""
    order = sorted(range(len(sizes)), key=lambda window: -sizes[window])
    return [[order[i] for i in group] for group in first_fit([sizes[window] for window in order], slots)]


def swept(packing: Callable[[Sequence[int], int], Packing]) -> Callable[[list[int], Place], Grouped]:
    """Packs at the group size that is cheapest for the mask by Eq. 8, as Algorithm 1 does."""

    def grouped(sizes: list[int], place: Place) -> Grouped:
        best = optimal_grouping(sizes, place.channels, packing)
        return Grouped(GroupLayout(best.slots, len(best.groups)), best.groups)

    return grouped


def at_window_area(packing: Callable[[Sequence[int], int], Packing]) -> Callable[[list[int], Place], Grouped]:
    """Packs at g_s = p * p, the tokens of a full window, or at all visible tokens where they are fewer."""

    def grouped(sizes: list[int], place: Place) -> Grouped:
        slots = min(math.prod(place.partition.windows[:2]), place.tokens)
        groups = packing(sizes, slots)
        return Grouped(GroupLayout(slots, len(groups)), groups)

    return grouped


def one_group(sizes: list[int], place: Place) -> Grouped:
    return Grouped(GroupLayout(sum(sizes), 1), [[window for window, size in enumerate(sizes) if size]])


def static(sizes: list[int], place: Place) -> Grouped | None:
    """None where the mask would be redrawn."""
    packing = packing_for(np.asarray(sizes), place.static)
    return None if packing is None else Grouped(place.static, packing)


STATIC = "static layout"
WAYS: dict[str, Callable[[list[int], Place], Grouped | None]] = {
    "Algorithm 1": swept(pack),
    "Eq. 7 at p^2": at_window_area(pack),
    "first fit at p^2": at_window_area(first_fit),
    "first fit, swept": swept(first_fit),
    "first fit decreasing, swept": swept(first_fit_decreasing),
    "one masked attention": one_group,
    STATIC: static,
}
