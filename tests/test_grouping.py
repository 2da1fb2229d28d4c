"""Eq. 7, Eq. 8 and Algorithm 1 against brute force and a literal transcription of the paper's listing."""

import random
from collections.abc import Iterator
from itertools import combinations

import pytest

from greenjax.planning.grouping import (
    grouping_cost,
    layout_cost,
    optimal_grouping,
    pack,
    pack_harder,
)

DESIGN_EXAMPLE = [8, 11, 14, 4, 11, 3, 16]


def random_sizes(rng: random.Random, count: int, largest: int = 16) -> list[int]:
    """Sizes as masks make them: many repeats, sometimes an empty window."""
    kinds = [rng.randint(1, largest) for _ in range(rng.randint(1, count))]
    return [0 if rng.random() < 0.1 else rng.choice(kinds) for _ in range(count - 1)] + [kinds[0]]


def first_group(sizes: list[int], limit: int) -> list[int]:
    """What Eq. 7 chooses."""
    return sorted(pack(sizes, limit)[0])


def check_packing(groups: list[list[int]], sizes: list[int], slots: int) -> None:
    placed = sorted(index for group in groups for index in group)
    assert placed == [index for index, size in enumerate(sizes) if size]
    assert all(0 < sum(sizes[index] for index in group) <= slots for group in groups)


def set_partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for groups in set_partitions(rest):
        yield [[first], *groups]
        for place, group in enumerate(groups):
            yield [*groups[:place], [first, *group], *groups[place + 1 :]]


def exhaustive_cost(sizes: list[int], channels: int) -> int:
    """The true optimum of Eq. 8; a partition's best group size is its largest group."""
    return min(
        grouping_cost(max(map(sum, groups)), len(groups), channels)
        for groups in set_partitions([size for size in sizes if size])
    )


def fewest_groups(sizes: list[int], slots: int) -> int:
    partitions = set_partitions([size for size in sizes if size])
    return min(len(groups) for groups in partitions if max(map(sum, groups)) <= slots)


def listing_knapsack(limit: int, windows: list[int], w: list[int]) -> list[int]:
    """Eq. 7 by the textbook table: best[k][t] is the largest sum not above t of the first k windows."""
    windows = sorted(windows, key=lambda i: -w[i])
    best = [[0] * (limit + 1)]
    for i in windows:
        above = best[-1]
        best.append([max(above[t], above[t - w[i]] + w[i] if t >= w[i] else 0) for t in range(limit + 1)])
    chosen, t = [], limit
    for k in range(len(windows), 0, -1):
        if best[k][t] != best[k - 1][t]:
            chosen.append(windows[k - 1])
            t -= w[windows[k - 1]]
    return chosen


def listing_algorithm_1(w: list[int], channels: int) -> tuple[int, float]:
    """The paper's listing, line by line: (g_s, cost)."""
    best_cost, best_slots = float("inf"), 0
    for g_s in range(max(w), sum(w) + 1):
        remaining = [i for i in range(len(w)) if w[i] > 0]
        partition = []
        while remaining:
            chosen = listing_knapsack(g_s, remaining, w)
            partition.append(chosen)
            remaining = [i for i in remaining if i not in chosen]
        cost = len(partition) * (4 * g_s * channels**2 + 2 * g_s**2 * channels)
        if cost < best_cost:
            best_cost, best_slots = cost, g_s
    return best_slots, best_cost


@pytest.mark.parametrize("seed", range(60))
def test_a_group_equals_brute_force(seed):
    """Eq. 7 finds the largest sum not above the limit, exactly."""
    rng = random.Random(seed)
    sizes = random_sizes(rng, rng.randint(1, 9))
    limit = rng.randint(max(sizes), sum(sizes) + 3)
    subsets = (subset for k in range(len(sizes) + 1) for subset in combinations(sizes, k))
    chosen = first_group(sizes, limit)
    assert sum(sizes[index] for index in chosen) == max(total for s in subsets if (total := sum(s)) <= limit)
    assert chosen == sorted(set(chosen))
    assert all(sizes[index] for index in chosen)


def test_a_group_breaks_ties_always_the_same_way():
    """The smallest windows are left for later groups; of equal ones the first are taken."""
    assert first_group([2, 4, 6, 4, 2, 4, 6], 8) == [1, 3]


@pytest.mark.parametrize("seed", range(40))
def test_optimal_grouping_equals_the_papers_listing(seed):
    rng = random.Random(seed)
    sizes = random_sizes(rng, rng.randint(1, 9), largest=12)
    channels = rng.choice([1, 8, 64, 512])
    found = optimal_grouping(sizes, channels)
    assert (found.slots, found.cost) == listing_algorithm_1(sizes, channels)
    assert found.cost == grouping_cost(found.slots, len(found.groups), channels)
    check_packing(found.groups, sizes, found.slots)


def test_optimal_grouping_is_never_below_the_exhaustive_optimum(capsys):
    """Algorithm 1 is greedy: it cannot beat the optimum over all partitions, and does not always reach it."""
    cases = [DESIGN_EXAMPLE, *(random.Random(seed).choices(range(1, 17), k=7) for seed in range(40))]
    gaps = [optimal_grouping(sizes, 16).cost / exhaustive_cost(sizes, 16) - 1 for sizes in cases]
    with capsys.disabled():
        print(f"\nAlgorithm 1: optimal in {gaps.count(0)} of {len(gaps)} cases, at most {max(gaps):.2%} above")
    assert min(gaps) >= 0
    assert 0 < max(gaps) < 0.05


def test_greedy_repetition_is_not_always_optimal():
    """A counter-example: three groups of at most 23 are cheapest; Algorithm 1 ends elsewhere."""
    assert exhaustive_cost(DESIGN_EXAMPLE, 16) == grouping_cost(23, 3, 16)
    assert optimal_grouping(DESIGN_EXAMPLE, 16).cost > exhaustive_cost(DESIGN_EXAMPLE, 16)


def test_greedy_repetition_can_miss_the_fewest_groups_however_ties_are_broken():
    """6 + 9 + 11 is the only way to fill 26 slots; taking it leaves windows that need three groups more."""
    sizes, slots = [14, 16, 6, 11, 5, 14, 9], 26
    assert fewest_groups(sizes, slots) == 3
    assert len(pack(sizes, slots)) == 4
    rescued = pack_harder(sizes, slots, 3)
    assert rescued is not None
    assert len(rescued) == 3
    check_packing(rescued, sizes, slots)


@pytest.mark.parametrize("seed", range(40))
def test_packings_are_valid_and_repeatable(seed):
    """Every window stands in exactly one group, and no group is larger than its slots."""
    rng = random.Random(seed)
    sizes = random_sizes(rng, rng.randint(1, 60), largest=49)
    slots = rng.randint(max(sizes), 2 * max(sizes))
    groups = pack(sizes, slots)
    check_packing(groups, sizes, slots)
    assert groups == pack(list(sizes), slots)
    limit = rng.randint(-(-sum(sizes) // slots), len(groups))
    harder = pack_harder(sizes, slots, limit)
    assert harder == pack_harder(list(sizes), slots, limit)
    if harder is not None:
        check_packing(harder, sizes, slots)
        assert len(harder) <= limit


@pytest.mark.parametrize("seed", range(40))
def test_pack_repeats_eq_7(seed):
    """The shortcut for rows that occur several times changes nothing."""
    rng = random.Random(seed)
    sizes = random_sizes(rng, rng.randint(1, 30))
    slots = rng.randint(max(sizes), 3 * max(sizes))
    rows, left = [], list(sizes)
    while any(left):
        chosen = first_group(left, slots)
        rows.append(chosen)
        left = [0 if index in chosen else size for index, size in enumerate(left)]
    assert [sorted(group) for group in pack(sizes, slots)] == rows


def test_stronger_search_finds_packings_that_greedy_repetition_misses():
    """Full rows cut into windows have a packing without padding; most that pack() misses are found."""
    rng = random.Random(0)
    missed = found = 0
    for _ in range(200):
        rows = [sorted(rng.sample(range(1, 50), rng.randint(1, 2))) for _ in range(8)]
        sizes = [b - a for cuts in rows for a, b in zip([0, *cuts], [*cuts, 50], strict=True)]
        rng.shuffle(sizes)
        if len(pack(sizes, 50)) > 8:
            missed += 1
            harder = pack_harder(sizes, 50, 8)
            if harder is not None:
                check_packing(harder, sizes, 50)
                assert len(harder) == 8
                found += 1
    assert missed >= 5
    assert found >= 0.8 * missed


def test_stronger_search_gives_up_on_the_impossible():
    assert pack_harder([5, 5, 5], 7, 2) is None  # 15 tokens would fit 14 slots only without one
    assert pack_harder([4, 4, 4], 7, 2) is None  # no two windows fit one group


def test_a_window_larger_than_a_group_is_refused():
    for search in (lambda: pack([3, 9], 8), lambda: pack_harder([3, 9], 8, 2)):
        with pytest.raises(ValueError, match=r"slots: found 8, expected at least .* 9"):
            search()


def test_windows_without_visible_tokens():
    assert pack([], 8) == []
    assert pack([0, 0], 8) == []
    assert pack([0, 3], 8) == [[1]]
    with pytest.raises(ValueError, match="window_sizes: found no visible token"):
        optimal_grouping([0, 0], 128)


def test_costs():
    """Padding costs in all terms of Eq. 8, in greenjax only in the quadratic one; without it they agree."""
    assert grouping_cost(slots=56, groups=16, channels=128) == 16 * (4 * 56 * 128**2 + 2 * 56**2 * 128)
    assert layout_cost(n=768, slots=56, groups=16, channels=128) == 4 * 768 * 128**2 + 16 * 2 * 56**2 * 128
    assert layout_cost(16 * 56, 56, 16, 128) == grouping_cost(56, 16, 128)
