"""The planner of a run: pure functions of (seed, step, mask group), redraws, layouts and their cache."""

import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from greenjax import config as configs
from greenjax.backbones.family import square_windows
from greenjax.backbones.geometry import make_planner, stage_specs, token_grid
from greenjax.planning import Plan, Planner, StageSpec, TokenGrid, Windows, planner
from greenjax.planning.analysis import analyse
from greenjax.planning.grouping import pack
from greenjax.planning.layout import choose_layouts
from greenjax.planning.masking import visible_count
from greenjax.planning.plan import GroupLayout, packing_for, partitions_of


def assert_same(one: Plan, other: Plan) -> None:
    leaves, others = list(plan_leaves(one)), list(plan_leaves(other))
    assert len(leaves) == len(others)
    assert all(np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))


def plan_leaves(tree) -> Iterator[np.ndarray]:
    if isinstance(tree, np.ndarray):
        yield tree
    elif tree is not None:
        for child in tree:
            yield from plan_leaves(child)


def shapes(plan: Plan) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in plan_leaves(plan)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


FIVE, THREE = ((Windows(side, side), Windows(side, side, (side // 2, side // 2))) for side in (5, 3))
SMALL = [StageSpec(FIVE), StageSpec(FIVE, kernels=(3,)), StageSpec(THREE)]


@pytest.fixture(scope="module")
def small() -> Planner:
    """32 units of which 10 are visible; windows that cut through units."""
    return chosen_for(TokenGrid(64, 128, patch=4, stages=3), SMALL, visible=10)


def chosen_for(grid: TokenGrid, specs: list[StageSpec], visible: int, masks: int = 300, block: int = 1) -> Planner:
    """A planner whose layouts are chosen as in a run, by fewer masks."""
    simulated = planner.simulated_masks(grid.units, visible, masks, block=block)
    layouts = choose_layouts(partitions_of(grid, specs), simulated, planner.TOLERANCE)
    return Planner(grid, specs, layouts, visible, seed=3, block=block)


def four_units():
    """A resolved configuration of 64 x 64 pixels: four mask units, one of them visible."""
    config = configs.default_config()
    config.steps = 1
    config.data.source = "digits"
    config.image_size = 64
    return configs.resolve(config)


def test_plans_are_pure_functions_of_seed_step_and_mask_group(small):
    plan, redrawn = small.plans(step=7, groups=4)
    assert redrawn.dtype == np.int32
    assert redrawn.shape == (4,)
    again, _ = pickle.loads(pickle.dumps(small)).plans(step=7, groups=4)
    assert_same(plan, again)
    fewer, _ = small.plans(step=7, groups=2)
    assert np.array_equal(fewer.visible_units, plan.visible_units[:2])
    masks = [small.plans(8, 4), seeded(small, 5).plans(7, 4), small.held_out_plans(7, 4)]
    drawn = [plan.visible_units, *(other.visible_units for other, _ in masks)]
    assert len({row.tobytes() for rows in drawn for row in rows}) == 16


def test_sizes_of_plans_depend_on_the_configuration_only(small):
    first, _ = small.plans(step=0, groups=2)
    assert all(leaf.dtype == np.int32 for leaf in plan_leaves(first))
    for step in range(1, 30):
        assert shapes(seeded(small, step % 3).plans(step=step, groups=2)[0]) == shapes(first)
    example = small.example(2)
    assert shapes(example) == shapes(first) and all(leaf.dtype == np.int32 for leaf in plan_leaves(example))
    assert shapes(small.held_out_plans(0, 2)[0]) == shapes(first)


def test_pool_bounds_the_number_of_masks(small):
    pooled = Planner(small.grid, [], (), visible=10, seed=3, pool=4)
    plans = [pooled.plans(step=step, groups=3)[0] for step in range(20)]
    distinct = {row.tobytes() for plan in plans for row in plan.visible_units}
    assert len(distinct) == 4
    fresh = Planner(small.grid, [], (), visible=10, seed=3, pool=4).plans(step=19, groups=3)[0]
    assert_same(fresh, plans[19])


def seeded(small: Planner, seed: int) -> Planner:
    return Planner(small.grid, SMALL, small.layouts, small.visible, seed)


def with_first_layout(small: Planner, layout: GroupLayout) -> Planner:
    layouts = ((layout, small.layouts[0][1]), *small.layouts[1:])
    return Planner(small.grid, SMALL, layouts, small.visible, seed=3)


def test_masks_that_do_not_fit_are_redrawn_and_counted(small):
    """A layout that about one mask in ten does not fit: the plans that come are whole, misses are counted."""
    plan, redrawn = with_first_layout(small, GroupLayout(24, 7)).plans(step=0, groups=40)
    assert 0 < redrawn.sum() < 20
    token = plan.windows[0][0].token
    assert token is not None
    assert token.shape == (40, 7, 24)
    assert ((token.reshape(40, -1) < 160).sum(axis=1) == 160).all()


def test_layouts_that_hold_no_mask_end_in_one_line(small):
    with pytest.raises(RuntimeError, match="masks in a row did not fit"):
        with_first_layout(small, GroupLayout(8, 20)).plans(step=0, groups=1)


def test_packing_calls_the_stronger_search_only_where_it_is_needed():
    sizes = np.array([14, 16, 6, 11, 5, 14, 9])
    assert len(pack(sizes.tolist(), 26)) == 4
    assert len(packing_for(sizes, GroupLayout(26, 4))) == 4
    assert len(packing_for(sizes, GroupLayout(26, 3))) == 3
    assert packing_for(sizes, GroupLayout(26, 2)) is None
    assert packing_for(sizes, GroupLayout(15, 7)) is None


@pytest.mark.parametrize(
    ("image", "window", "ratio", "block"),
    [
        ((128, 128), 4, 0.75, 1),
        ((96, 160), 7, 0.6, 1),
        ((64, 192), 5, 0.3, 1),
        ((160, 160), 7, 0.6, 3),
    ],
)
def test_layouts_hold_fresh_masks(image, window, ratio, block):
    """At most 1 % of masks that the choice of layouts never saw are redrawn, and no layout wastes much."""
    grid = TokenGrid(*image, patch=4, stages=4)
    visible = visible_count(grid.units[0] * grid.units[1], ratio)
    chosen = chosen_for(
        grid,
        [StageSpec(square_windows(window, grid.shape(i), 2, shifted=True)) for i in range(4)],
        visible,
        block=block,
    )
    analysis = analyse(chosen, [96, 192, 384, 768], masks=200)
    assert analysis.redrawn <= 0.01
    for stage in analysis.facts:
        for facts in stage:
            assert 0 <= facts.padding < 1
            assert facts.lost <= facts.harder
            assert facts.cost < 1.5 * facts.optimal_cost


def test_layouts_are_cached(cache, monkeypatch):
    config = four_units()
    first = make_planner(config).layouts
    monkeypatch.setattr(planner, "choose_layouts", lambda *_: pytest.fail("the cache was not read"))
    assert make_planner(config).layouts == first
    with pytest.raises(pytest.fail.Exception, match="not read"):  # masks of another kind have layouts of their own
        planner.cached_layouts(token_grid(config), stage_specs(config), 1, block=2)
    (entry,) = (cache / "greenjax").iterdir()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    entry.write_text("torn")
    assert make_planner(config).layouts == first


def test_layouts_that_lose_too_many_masks_are_refused(cache, monkeypatch):
    monkeypatch.setattr(
        planner,
        "choose_layouts",
        lambda stages, *_: tuple(tuple(GroupLayout(1, 1) for _ in stage) for stage in stages),
    )
    with pytest.raises(ValueError, match=r"100\.0% of the masks would be redrawn with 1 of 4 units visible"):
        make_planner(four_units())
