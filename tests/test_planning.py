"""Plans of random geometries against the rules they follow, written out token by token."""

import random
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from greenjax.backbones.family import square_windows
from greenjax.planning import StageSpec, TokenGrid, Windows, dense_plan, exact_plan
from greenjax.planning.layout import choose_layouts
from greenjax.planning.masking import draw_visible, visible_count
from greenjax.planning.plan import Grouping, GroupLayout, WindowPartition, make_plan, partitions_of
from greenjax.planning.tokens import to_grid, to_unit_major

GEOMETRIES = range(30)


class Case:
    """A random geometry with a few random masks."""

    def __init__(self, seed: int):
        rng = random.Random(seed)
        stages = rng.randint(1, 4)
        patch = rng.choice([1, 2, 4, 7])
        unit = patch * 2 ** (stages - 1)
        rows, columns = rng.randint(1, 6), rng.randint(2, 6)
        self.grid = TokenGrid(rows * unit, columns * unit, patch, stages)
        self.specs = [StageSpec(random_windows(rng), random_kernels(rng)) for _ in range(stages)]
        self.partitions = partitions_of(self.grid, self.specs)
        self.visible_units = rng.randint(1, rows * columns - 1)
        numpy_rng = np.random.default_rng(seed)
        self.masks = np.stack([draw_visible(numpy_rng, (rows, columns), self.visible_units) for _ in range(3)])


def random_windows(rng: random.Random) -> tuple[Windows, ...]:
    """Up to three ways to cut a grid, into squares or not, shifted or not."""
    sides = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(rng.randint(0, 3))]
    shifts = [(rng.randrange(rows), rng.choice([0, rng.randrange(columns)])) for rows, columns in sides]
    return tuple(Windows(*side, shift) for side, shift in zip(sides, shifts, strict=True))


def random_kernels(rng: random.Random) -> tuple[int | tuple[int, int], ...]:
    return tuple(rng.choice([1, 3, 5, 7, (1, 3), (5, 3)]) for _ in range(rng.randint(0, 2)))


def recursive_tokens(row: int, column: int, side: int) -> Iterator[tuple[int, int]]:
    """The token order as defined: the children of a block column by column, down to the token."""
    if side == 1:
        yield row, column
        return
    half = side // 2
    for down, right in ((0, 0), (1, 0), (0, 1), (1, 1)):
        yield from recursive_tokens(row + down * half, column + right * half, half)


def visible_tokens(grid: TokenGrid, stage: int, mask: np.ndarray) -> list[tuple[int, int]]:
    """(row, column) of the visible tokens of a stage, unit-major."""
    side = 2 ** (grid.stages - 1 - stage)
    units = [(row, column) for row in range(mask.shape[0]) for column in range(mask.shape[1])]
    return [
        token
        for row, column in units
        if mask[row, column]
        for token in recursive_tokens(row * side, column * side, side)
    ]


@pytest.mark.parametrize("seed", GEOMETRIES)
def test_token_order_is_the_recursive_definition(seed):
    case = Case(seed)
    rows, columns = case.grid.units
    for stage in range(case.grid.stages):
        everything = visible_tokens(case.grid, stage, np.ones((rows, columns), bool))
        assert list(map(tuple, case.grid.coordinates(stage).reshape(-1, 2))) == everything
        height, width = case.grid.shape(stage)
        index = np.arange(height * width).reshape(1, height, width, 1)
        side = case.grid.side(stage)
        tokens = to_unit_major(index, side)
        assert tokens.ravel().tolist() == [row * width + column for row, column in everything]
        assert np.array_equal(to_grid(tokens.reshape(1, -1, 1), (rows, columns), side), index)


def test_a_last_stage_that_does_not_pool_has_the_grid_before():
    pooled, grid = (TokenGrid(32, 64, patch=2, stages=4, unpooled=count) for count in (0, 1))
    assert (grid.unit, grid.units, grid.pixels, pooled.pixels) == (16, (2, 4), 8, 16)
    for stage, before in ((0, 0), (1, 1), (2, 2), (3, 2), (-1, 2)):
        assert grid.side(stage) == pooled.side(before) and grid.shape(stage) == pooled.shape(before)
        assert np.array_equal(grid.coordinates(stage), pooled.coordinates(before))
    rows, columns = np.divmod(grid.raster(-1), grid.shape(-1)[1])
    assert np.array_equal(np.stack([rows, columns], axis=-1), grid.coordinates(3))


def test_patches_are_leaves_in_raster_order():
    """An image cut to units: each first-stage token holds its patch as (row, column, channel)."""
    grid = TokenGrid(24, 36, patch=3, stages=3)
    image = np.arange(24 * 36 * 2).reshape(1, 24, 36, 2)
    patches = to_unit_major(image, grid.unit, grid.patch).reshape(-1, 3 * 3 * 2)
    for patch, (row, column) in zip(patches, grid.coordinates(0).reshape(-1, 2), strict=True):
        assert np.array_equal(patch, image[0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].ravel())


@pytest.mark.parametrize("seed", GEOMETRIES)
def test_windows_follow_the_rule_for_every_token(seed):
    """Row y belongs to window (y + (rows - shift if shifted else 0)) // rows, columns likewise."""
    case = Case(seed)
    for stage, spec in enumerate(case.specs):
        assert len(case.partitions[stage]) == len(spec.windows)
        for partition, (rows, columns, (down, right), _) in zip(case.partitions[stage], spec.windows, strict=True):
            down, right = rows - down if down else 0, columns - right if right else 0
            across = (case.grid.shape(stage)[1] - 1 + right) // columns + 1
            tokens = case.grid.coordinates(stage).reshape(-1, 2).tolist()
            ids = [(y + down) // rows * across + (x + right) // columns for y, x in tokens]
            positions = [(y + down) % rows * columns + (x + right) % columns for y, x in tokens]
            assert partition.ids.ravel().tolist() == ids
            assert partition.positions.ravel().tolist() == positions


@pytest.mark.parametrize(
    ("side", "grid", "blocks", "shifted", "expected"),
    [
        (7, (14, 21), 3, True, [(7, 7, (0, 0), 2), (7, 7, (3, 3), 1)]),
        (7, (14, 21), 3, False, [(7, 7, (0, 0), 3)]),
        (7, (14, 21), 1, True, [(7, 7, (0, 0), 1)]),
        (7, (7, 21), 4, True, [(7, 7, (0, 0), 4)]),
        (7, (21, 5), 4, True, [(5, 5, (0, 0), 4)]),
        (1, (14, 21), 4, True, [(1, 1, (0, 0), 4)]),
    ],
)
def test_square_windows_follow_the_official_rule(side, grid, blocks, shifted, expected):
    assert list(square_windows(side, grid, blocks, shifted=shifted)) == expected


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ((15, 20), [(7, 7, (0, 0), 2), (7, 7, (3, 3), 1)]),
        ((7, 20), [(7, 7, (0, 0), 2), (7, 7, (0, 3), 1)]),
        ((3, 7), [(7, 7, (0, 0), 3)]),
    ],
)
def test_windows_that_are_filled_up_follow_the_rule_of_torchvision(grid, expected):
    assert list(square_windows(7, grid, 3, shifted=True, padded=True)) == expected


@pytest.mark.parametrize("seed", GEOMETRIES)
def test_every_visible_token_stands_in_exactly_one_slot(seed):
    case = Case(seed)
    layouts = choose_layouts(case.partitions, case.masks, tolerance=0.0)
    for mask in case.masks:
        plan = make_plan(mask, case.partitions, layouts)
        assert plan is not None
        assert plan.visible_units.tolist() == np.flatnonzero(mask).tolist()
        assert plan.masked_units.tolist() == np.flatnonzero(~mask).tolist()
        for stage, (groupings, of_stage) in enumerate(zip(plan.windows, case.partitions, strict=True)):
            tokens = visible_tokens(case.grid, stage, mask)
            for grouping, partition, layout in zip(groupings, of_stage, layouts[stage], strict=True):
                check_grouping(grouping, partition, layout, tokens)


@pytest.mark.parametrize("seed", GEOMETRIES)
def test_neighbours_are_the_visible_ones_under_each_kernel(seed):
    case = Case(seed)
    plan = exact_plan(case.grid, case.specs, case.masks)
    assert [len(of_stage) for of_stage in plan.neighbours] == [len(spec.kernels) for spec in case.specs]
    for stage, spec in enumerate(case.specs):
        for kernel, neighbours in zip(spec.kernels, plan.neighbours[stage], strict=True):
            kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            around = [(i - kh // 2, j - kw // 2) for i in range(kh) for j in range(kw)]
            assert neighbours.dtype == np.int32
            for mask, taps in zip(case.masks, neighbours, strict=True):
                tokens = visible_tokens(case.grid, stage, mask)
                number = {token: place for place, token in enumerate(tokens)}
                expected = [[number.get((y + dy, x + dx), len(tokens)) for dy, dx in around] for y, x in tokens]
                assert taps.tolist() == expected


def test_a_stage_without_windows_is_not_grouped():
    grid = TokenGrid(32, 48, patch=4, stages=2)
    mask = np.arange(24).reshape(4, 6) % 3 == 0
    plan = exact_plan(grid, [StageSpec(kernels=(3,)), StageSpec((Windows(3, 3),))], mask[None])
    assert plan.windows[0] == ()
    assert len(plan.windows[1]) == 1
    assert plan.neighbours[0][0].shape == (1, 8 * 4, 9)
    assert plan.neighbours[1] == ()


def test_the_dense_plan_sees_every_neighbour():
    grid = TokenGrid(8, 12, patch=1, stages=3)
    plan = dense_plan(grid, (StageSpec(kernels=(3,)),) * 3)
    assert plan.visible_units.tolist() == list(range(6))
    for stage, (taps,) in enumerate(plan.neighbours):
        h, w = grid.shape(stage)
        assert (taps == h * w).sum() == 9 * h * w - (3 * h - 2) * (3 * w - 2)


def check_grouping(
    grouping: Grouping, partition: WindowPartition, layout: GroupLayout, tokens: list[tuple[int, int]]
) -> None:
    n = len(tokens)
    assert grouping.window.shape == grouping.position.shape == (layout.groups, layout.slots)
    where = {token: place for place, token in enumerate(map(tuple, token_rows(partition)))}
    window = [partition.ids.ravel()[where[token]] for token in tokens]
    position = [partition.positions.ravel()[where[token]] for token in tokens]
    if grouping.token is None:
        assert grouping.slot is None
        assert grouping.window.ravel().tolist() == window
        assert grouping.position.ravel().tolist() == position
        return
    token = grouping.token.ravel()
    taken = token < n
    assert sorted(token[taken].tolist()) == list(range(n))
    assert (token[~taken] == n).all()
    assert np.array_equal(token[grouping.slot], np.arange(n))
    assert grouping.window.ravel()[grouping.slot].tolist() == window
    assert grouping.position.ravel()[grouping.slot].tolist() == position
    assert (grouping.window.ravel()[~taken] == -1).all()
    assert (grouping.position.ravel()[~taken] == 0).all()
    rows = [set(row.tolist()) - {-1} for row in grouping.window]
    assert sum(map(len, rows)) == len(set().union(*rows)), "a window is spread over two groups"


def token_rows(partition: WindowPartition) -> list[list[int]]:
    return partition.grid.coordinates(partition.stage).reshape(-1, 2).tolist()


@pytest.mark.parametrize("seed", GEOMETRIES)
def test_visible_counts_of_windows(seed):
    """The w_i of the packing are the visible tokens of each window."""
    case = Case(seed)
    for stage, of_stage in enumerate(case.partitions):
        for partition in of_stage:
            where = {tuple(token): place for place, token in enumerate(token_rows(partition))}
            for mask, sizes in zip(case.masks, partition.sizes(case.masks), strict=True):
                ids = [partition.ids.ravel()[where[token]] for token in visible_tokens(case.grid, stage, mask)]
                assert sizes.tolist() == np.bincount(ids, minlength=sizes.size).tolist()


def test_counts_of_a_large_image_need_no_table_of_units_by_windows():
    """At 2048 pixels it has 22.4 million entries, in a product for each mask."""
    grid = TokenGrid(2048, 2048, patch=4, stages=4)
    partition = WindowPartition(grid, 0, Windows(7, 7, (3, 3)))
    visible = np.random.default_rng(0).random(grid.units) < 0.25
    tracemalloc.start()
    sizes = partition.sizes(visible)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sizes.size * visible.size / 10 and sizes.sum() == 64 * visible.sum()


def test_dense_plan_needs_no_padding():
    """With every unit visible and grids that are multiples of the window, each window is a row of its own."""
    grid = TokenGrid(56, 112, patch=4, stages=2)
    plan = exact_plan(
        grid,
        [StageSpec((Windows(7, 7), Windows(7, 7, (3, 3)))), StageSpec((Windows(7, 7),))],
        np.ones((1, 7, 14), bool),
    )
    assert plan.masked_units.shape == (1, 0)
    for stage in plan.windows:
        regular = stage[0]
        assert (regular.window >= 0).all()
        assert all(len(set(row.tolist())) == 1 for row in regular.window.reshape(-1, 49))


def test_visible_count():
    assert visible_count(49, 0.75) == 12
    assert visible_count(16, 0.75) == 4
    assert visible_count(10, 0.9) == 1
    with pytest.raises(ValueError, match=r"mask\.ratio is 0\.9: expected .* of 4 units it leaves none visible"):
        visible_count(4, 0.9)
    with pytest.raises(ValueError, match="of 1 units it leaves none masked"):
        visible_count(1, 0.0)


def test_an_image_is_a_whole_number_of_units():
    with pytest.raises(ValueError, match=r"image_size is \(230, 224\): expected multiples of the mask unit, 32"):
        TokenGrid(230, 224, patch=4, stages=4)
