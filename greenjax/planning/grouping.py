"""Packing windows into groups: Eq. 7, Eq. 8 and Algorithm 1 of the paper (arXiv 2205.13515).

The paper's group size g_s is `slots`, its number of groups n_g is `groups`. A window counts by its size, the
number of its visible tokens, and few sizes occur (a dozen among 64 windows at 224 px). So everything here
works on a multiset {size: count}; windows are named again only when the packing stands.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from greenjax.errors import InputError

Packing = list[list[int]]  # the windows of each group
Counts = dict[int, int]  # {size: how many}; of equal totals, the one of the sizes inserted first is taken

_RESTARTS = 24


class OptimalGrouping(NamedTuple):
    """What Algorithm 1 finds: groups[j] holds the indices of the windows in group j, cost is Eq. 8's."""

    slots: int
    groups: Packing
    cost: int


def pack(sizes: Sequence[int], slots: int) -> Packing:
    """Groups of window indices, none above `slots` tokens: Eq. 7 repeated until all windows are placed.

    Among equal totals, Eq. 7 takes the one that leaves the smallest windows (they fill later groups best); among
    windows of equal size, low indices. Windows of size 0 stand in no group. Raises InputError when a window is larger
    than slots.
    """
    counts = _count(sizes)
    _check_largest(counts, slots)
    rows: list[Counts] = []
    while counts:
        row = _best_fill(counts, slots)
        rows += _take(counts, row)
    return _name_windows(rows, sizes)


def pack_harder(sizes: Sequence[int], slots: int, groups: int) -> Packing | None:
    """A packing into at most `groups` groups, or None when a bounded search finds none.

    For masks that pack() spreads over too many groups. Each attempt fills one group after the other around
    the largest window left; attempts differ in which of several equally full groups they prefer, in a fixed
    pseudo-random order. None does not prove that no packing exists. Raises InputError when a window is larger
    than slots.
    """
    counts = _count(sizes)
    _check_largest(counts, slots)
    spare = groups * slots - sum(size * count for size, count in counts.items())
    if spare < 0 or sum(count for size, count in counts.items() if 2 * size > slots) > groups:
        return None
    rng = random.Random(0)
    for attempt in range(_RESTARTS):
        order = list(counts)
        if attempt:
            order.sort(key=lambda size: -size * rng.uniform(0.5, 1.5))
        rows = _fill_around_largest({size: counts[size] for size in order}, slots, spare)
        if rows is not None:
            return _name_windows(rows, sizes)
    return None


def optimal_grouping(
    window_sizes: Sequence[int], channels: int, packing: Callable[[Sequence[int], int], Packing] = pack
) -> OptimalGrouping:
    """The paper's Algorithm 1: the cheapest of the packings for every group size from max w_i to sum w_i.

    `packing` of (sizes, slots) can stand in for Eq. 7, to see what another one costs.

    Among equal costs the smallest group size is kept. Group sizes that could not win even without padding are
    skipped, which changes nothing in the result. "Optimal" is the paper's word: repeating Eq. 7 is greedy.
    Raises InputError when no window has a visible token.
    """
    total = sum(window_sizes)
    if total <= 0:
        raise InputError("window_sizes: found no visible token, expected at least one window with size > 0")
    best = None
    for slots in range(max(window_sizes), total + 1):
        fewest = -(-total // slots)
        if best is not None and grouping_cost(slots, fewest, channels) >= best.cost:
            continue
        groups = packing(window_sizes, slots)
        cost = grouping_cost(slots, len(groups), channels)
        if best is None or cost < best.cost:
            best = OptimalGrouping(slots, groups, cost)
    assert best is not None  # the sweep is never empty: max <= total
    return best


def grouping_cost(slots: int, groups: int, channels: int) -> int:
    """Multiplications of one attention layer by Eq. 8: padding passes through the projections too."""
    return groups * (4 * slots * channels**2 + 2 * slots**2 * channels)


def layout_cost(n: int, slots: int, groups: int, channels: int) -> int:
    """Multiplications of one attention layer as greenjax does it.

    The four projections are applied to the n ungrouped tokens, so padding costs in the quadratic term only.
    """
    return 4 * n * channels**2 + groups * 2 * slots**2 * channels


def _count(sizes: Sequence[int]) -> Counts:
    """The multiset of the sizes above 0, large sizes first."""
    counts: Counts = {}
    for size in sorted(sizes, reverse=True):
        counts[size] = counts.get(size, 0) + 1
    counts.pop(0, None)
    return counts


def _check_largest(counts: Counts, slots: int) -> None:
    if counts and max(counts) > slots:
        raise InputError(f"slots: found {slots}, expected at least the size of the largest window, {max(counts)}")


def _best_fill(counts: Counts, limit: int) -> Counts:
    """How many windows of each size give the largest total not above limit: Eq. 7, exact.

    The table of the dynamic programme is a bit set in a Python int, bit t of a row being set when total t can
    be reached. Equal sizes enter as lumps of 1, 2, 4, ... windows. The table ends with the first row that
    reaches the limit; preferring early rows on the way back makes the result the same as that of the whole
    table.
    """
    top, mask = 1 << limit, (2 << limit) - 1
    reach, rows = 1, []
    for size, count in counts.items():
        rows.append((size, reach))
        left, lump = min(count, limit // size), 1
        while left:
            lump = min(lump, left)
            reach |= reach << size * lump
            left -= lump
            lump *= 2
        reach &= mask
        if reach & top:
            break
    total = reach.bit_length() - 1
    chosen: Counts = {}
    for size, before in reversed(rows):
        while not before >> total & 1:
            total -= size
            chosen[size] = chosen.get(size, 0) + 1
    return chosen


def _fill_around_largest(counts: Counts, slots: int, spare: int) -> list[Counts] | None:
    """Rows, each filled up around the largest window left; None once they waste more than `spare`.

    With spare = groups * slots - tokens, staying within it means needing no more than `groups` rows.
    """
    rows: list[Counts] = []
    while counts:
        largest = max(counts)
        counts[largest] -= 1
        row = _best_fill(counts, slots - largest)
        counts[largest] += 1
        row[largest] = row.get(largest, 0) + 1
        same = _take(counts, row)
        spare -= len(same) * (slots - sum(size * count for size, count in row.items()))
        if spare < 0:
            return None
        rows += same
    return rows


def _take(counts: Counts, row: Counts) -> list[Counts]:
    """Removes `row` from counts as often as it is there, and returns that many rows.

    Taking windows away never makes a better row possible nor one that is preferred, so Eq. 7 would find the
    same row again until the windows for it run out.
    """
    times = min(counts[size] // count for size, count in row.items())
    for size, count in row.items():
        counts[size] -= times * count
        if not counts[size]:
            del counts[size]
    return [row] * times


def _name_windows(rows: list[Counts], sizes: Sequence[int]) -> Packing:
    """Rows as lists of window indices: among windows of equal size, low indices go into early rows."""
    waiting: dict[int, list[int]] = {}
    for index in range(len(sizes) - 1, -1, -1):
        waiting.setdefault(sizes[index], []).append(index)
    return [[waiting[size].pop() for size, count in row.items() for _ in range(count)] for row in rows]
