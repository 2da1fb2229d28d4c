"""Masks of single units and of blocks: how many units are visible, which ones, and how often each."""

import math
import pickle

import numpy as np
import pytest
from small import small_config

from greenjax.backbones.geometry import make_planner
from greenjax.errors import InputError
from greenjax.planning.masking import draw_visible, visible_count

MASKS = 10_000


def test_single_units_are_drawn_as_ever():
    """The bits of all runs before there were blocks."""
    for seed in range(5):
        drawn = draw_visible(np.random.default_rng(seed), (7, 9), 16)
        order = np.random.default_rng(seed).permutation(63)
        assert np.flatnonzero(drawn).tolist() == sorted(order[:16].tolist())


@pytest.mark.parametrize(("units", "block"), [((7, 7), 2), ((7, 7), 5), ((10, 6), 3)])
def test_masks_hide_whole_blocks_but_one_and_every_unit_equally_often(units, block):
    count = visible_count(math.prod(units), 0.75)
    rng = np.random.default_rng(0)
    visible = np.stack([draw_visible(rng, units, count, block) for _ in range(MASKS)])
    assert (visible.sum(axis=(1, 2)) == count).all()
    whole = np.stack([cut_blocks(visible, block, offset) for offset in np.ndindex(block, block)]) <= 1
    assert whole.any(axis=0).all(), "a mask that no grid explains"
    alone = whole[:, whole.sum(axis=0) == 1]  # masks that one grid alone explains
    assert alone.any(axis=1).all(), "an offset that never occurs"
    share = count / math.prod(units)
    deviation = math.sqrt(share * (1 - share) / MASKS)  # of a binomial share
    assert np.abs(visible.mean(axis=0) - share).max() < 4.5 * deviation
    assert len(np.unique(visible.reshape(MASKS, -1), axis=0)) > MASKS / 4


def cut_blocks(visible, block, offset):
    """How many blocks of a grid have visible and masked units, of each mask. Moves the grid by padding the mask."""
    padding = [(start, -(side + start) % block) for start, side in zip(offset, visible.shape[1:])]

    def blocks_with(units):
        padded = np.pad(units, [(0, 0), *padding])
        m, h, w = padded.shape
        return padded.reshape(m, h // block, block, w // block, block).any(axis=(2, 4))

    return (blocks_with(visible) & blocks_with(~visible)).sum(axis=(1, 2))


def test_every_share_can_be_masked_in_blocks():
    """One unit visible, or one masked; blocks as large as the grid."""
    for block in (2, 3, 4):
        for count in range(1, 12):
            assert draw_visible(np.random.default_rng(count), (4, 3), count, block).sum() == count


@pytest.mark.parametrize("method", ["green", "simmim"])
@pytest.mark.parametrize("pool", [0, 3])
def test_masks_of_training_and_of_held_out_images_hide_blocks(method, pool):
    """8 x 8 units, of which 48 are masked: single units would leave far more than one block of 3 x 3 cut."""
    config = small_config(method=method, mask__pool=pool, mask__block=3)
    planner = make_planner(config)
    plans = [planner.plans(7, 4)[0], planner.plans(8, 4)[0], planner.held_out_plans(7, 4)[0]]
    again = pickle.loads(pickle.dumps(planner)).plans(7, 4)[0]
    assert np.array_equal(again.visible_units, plans[0].visible_units)
    for units in np.concatenate([plan.visible_units for plan in plans]):
        visible = np.isin(np.arange(64), units).reshape(1, 8, 8)
        assert visible.sum() == 16
        assert min(cut_blocks(visible, 3, offset)[0] for offset in np.ndindex(3, 3)) <= 1
    if pool:
        assert len(np.unique(np.concatenate([plan.visible_units for plan in plans[:2]]), axis=0)) <= pool


def test_blocks_are_smaller_than_the_image():
    assert small_config(mask__block=7).mask.block == 7
    with pytest.raises(InputError, match=r"^mask.block is 8: expected at most 7 for 8 x 8 units: a block is a part"):
        small_config(mask__block=8)
