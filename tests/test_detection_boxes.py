"""Boxes, anchors, suppression, matching and losses of a detector, against their definitions in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_reference import area, matched, overlap, survivors

from greenjax.models.detection import boxes as ours
from greenjax.models.detection.anchors import RATIOS, anchors
from greenjax.models.detection.losses import binary_cross_entropy, box_loss, mean_where, smooth_l1
from greenjax.models.detection.matching import matched as ours_matched
from greenjax.models.detection.matching import sampled
from greenjax.models.detection.nms import suppressed


def random_boxes(rng, n, side=50, whole=False):
    low, size = rng.uniform(-5, side, (n, 2)), rng.uniform(0, side / 2, (n, 2))
    boxes = np.concatenate([low, low + size], axis=1).astype(np.float32)
    return boxes.round() if whole else boxes  # on whole pixels, boxes touch, are equal, or have no area


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("whole", [False, True])
def test_overlaps_are_the_intersection_over_the_union(rng, whole):
    a, b = (random_boxes(rng, n, side=12, whole=whole) for n in (20, 30))
    expected = [[overlap(x, y) for y in b] for x in a]
    np.testing.assert_allclose(ours.overlaps(jnp.asarray(a), jnp.asarray(b)), expected, atol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_codes_are_offsets_in_sides_and_logarithms_of_ratios(rng, weights):
    boxes, references = (
        random_boxes(rng, 20) + np.float32([0, 0, 1, 1]),
        random_boxes(rng, 20) + np.float32([0, 0, 1, 1]),
    )
    codes = np.asarray(ours.encoded(jnp.asarray(boxes), jnp.asarray(references), weights))
    for code, (x0, y0, x1, y1), (u0, v0, u1, v1) in zip(codes, boxes.astype(float), references.astype(float)):
        offsets = (x0 + x1 - u0 - u1) / 2 / (u1 - u0), (y0 + y1 - v0 - v1) / 2 / (v1 - v0)
        expected = *offsets, math.log((x1 - x0) / (u1 - u0)), math.log((y1 - y0) / (v1 - v0))
        np.testing.assert_allclose(code, np.multiply(expected, weights), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.decoded(jnp.asarray(codes), jnp.asarray(references), weights), boxes, atol=1e-4)


def test_a_decoded_box_grows_by_a_bounded_factor():
    box = ours.decoded(jnp.full((1, 4), 30.0), jnp.asarray([[0.0, 0.0, 2.0, 4.0]]), (1.0, 1.0, 1.0, 1.0))[0]
    np.testing.assert_allclose(box[2:] - box[:2], [2 * 62.5, 4 * 62.5], rtol=1e-5)


def test_boxes_are_cut_at_the_borders_of_their_own_image():
    boxes = jnp.asarray([[[-3.0, 2.0, 90.0, 70.0]], [[-3.0, 2.0, 90.0, 70.0]]])
    expected = [[[0, 2, 60, 40]], [[0, 2, 30, 50]]]
    np.testing.assert_array_equal(ours.clipped(boxes, jnp.asarray([[40, 60], [50, 30]])), expected)


def test_anchors_have_their_areas_and_ratios_around_every_place():
    levels = anchors((64, 96), [(16, 24), (2, 3)], (32, 256))
    assert [level.shape for level in levels] == [(16 * 24 * 3, 4), (2 * 3 * 3, 4)]
    for level, size, stride, (rows, columns) in zip(levels, (32, 256), (4, 32), ((16, 24), (2, 3))):
        grid = level.reshape(rows, columns, 3, 4)
        for row, column, i in ((0, 0, 0), (1, 2, 1), (rows - 1, columns - 1, 2)):
            width, height = size / math.sqrt(RATIOS[i]), size * math.sqrt(RATIOS[i])
            base = np.round(np.array([-width, -height, width, height]) / 2)
            expected = base + np.array([column, row] * 2) * stride
            np.testing.assert_array_equal(grid[row, column, i], expected)


CASES = {
    "random": dict(n=40),
    "touching and equal boxes": dict(n=60, whole=True),
    "equal scores": dict(n=40, scores=1),
    "several blocks": dict(n=700),
    "few places": dict(n=100, limit=7),
    "places enough": dict(n=30, limit=64),
    "none is valid": dict(n=20, valid=0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_survivors_are_those_of_the_greedy_definition(rng, case):
    options = dict(whole=False, scores=1000, limit=20, valid=0.8) | CASES[case]
    n = options["n"]
    boxes = np.stack([random_boxes(rng, n, 20, options["whole"]) for _ in range(2)])
    scores = (rng.integers(0, options["scores"], (2, n)) / 1000).astype(np.float32)
    groups, valid = rng.integers(0, 3, (2, n)), rng.random((2, n)) < options["valid"]
    arrays = [jnp.asarray(x) for x in (boxes, scores, groups.astype(np.int32), valid)]
    index, kept = suppressed(*arrays, threshold=0.3, limit=options["limit"])
    assert index.shape == kept.shape == (2, options["limit"])
    for i in range(2):
        expected = survivors(boxes[i], scores[i], groups[i], valid[i], 0.3, options["limit"])
        assert np.asarray(index[i])[np.asarray(kept[i])].tolist() == expected
        assert bool((np.diff(np.asarray(kept[i]).astype(int)) <= 0).all())


@pytest.mark.parametrize("low, high, best_too", [(0.3, 0.7, True), (0.5, 0.5, False)])
def test_boxes_match_the_objects_that_overlap_them(rng, low, high, best_too):
    boxes, objects = random_boxes(rng, 200, 20), random_boxes(rng, 6, 20) + np.float32([0, 0, 3, 3])
    valid = np.array([True, True, False, True, False, True])
    match = ours_matched(*map(jnp.asarray, (boxes, objects, valid)), low=low, high=high, best_too=best_too)
    index, labels = matched(boxes, objects[valid], low, high, best_too)
    assert set(labels) == ({1, 0, -1} if low < high else {1, 0})
    np.testing.assert_array_equal(match.positive, labels == 1)
    np.testing.assert_array_equal(match.negative, labels == 0)
    chosen = labels == 1
    np.testing.assert_array_equal(np.asarray(match.objects)[chosen], np.flatnonzero(valid)[index][chosen])


def test_without_objects_all_is_background(rng):
    boxes, none = jnp.asarray(random_boxes(rng, 9)), jnp.zeros((3, 4))
    match = ours_matched(boxes, none, jnp.zeros(3, bool), low=0.3, high=0.7, best_too=True)
    assert bool(match.negative.all()) and not bool(match.positive.any())


@pytest.mark.parametrize(
    "positives, negatives, expected", [(40, 100, (8, 24)), (3, 100, (3, 29)), (40, 5, (8, 5)), (0, 0, (0, 0))]
)
def test_samples_are_balanced(positives, negatives, expected):
    """Of 200 boxes 32, at most a quarter of them positive; as torchvision's BalancedPositiveNegativeSampler."""
    kind = np.random.default_rng(1).permutation(
        np.repeat([1, 0, -1], [positives, negatives, 200 - positives - negatives])
    )
    positive, negative = jnp.asarray(kind == 1), jnp.asarray(kind == 0)
    drawn = set()
    for seed in range(2):
        index, is_positive, valid = map(np.asarray, sampled(jax.random.key(seed), positive, negative, 32, 0.25))
        assert len(index) == 32 and (is_positive <= valid).all()
        assert len(set(index[valid])) == valid.sum()
        assert (is_positive.sum(), (valid & ~is_positive).sum()) == expected
        assert (kind[index[is_positive]] == 1).all() and (kind[index[valid & ~is_positive]] == 0).all()
        assert (np.sort(~is_positive) == ~is_positive).all()  # positive ones first
        drawn.add(tuple(index[valid]))
    assert len(drawn) == 2 or sum(expected) < 6


def test_a_sample_may_take_every_box():
    positive = jnp.arange(50) % 3 == 0
    index, is_positive, valid = sampled(jax.random.key(0), positive, ~positive, 200, 0.5)
    assert sorted(index.tolist()) == list(range(50)) and int(is_positive.sum()) == 17 and bool(valid.all())


def test_terms_of_the_losses(rng):
    x = rng.normal(0, 0.5, 50).astype(np.float32)
    expected = [0.5 * v * v * 9 if abs(v) < 1 / 9 else abs(v) - 0.5 / 9 for v in x]
    np.testing.assert_allclose(smooth_l1(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    z = rng.random(50).astype(np.float32)
    p = 1 / (1 + np.exp(-x.astype(float)))
    expected = -z * np.log(p) - (1 - z) * np.log(1 - p)
    np.testing.assert_allclose(binary_cross_entropy(jnp.asarray(x), jnp.asarray(z)), expected, rtol=1e-5)
    assert float(mean_where(jnp.asarray(x), jnp.zeros(50, bool))) == 0


def test_box_loss_is_over_all_samples_and_of_the_positive_ones_alone(rng):
    codes, targets = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    positive, valid = np.array([1, 1, 0, 0, 0, 0], bool), np.array([1, 1, 1, 1, 0, 0], bool)
    targets[2:] = -np.inf  # of boxes without an object
    loss = lambda codes: box_loss(codes, *map(jnp.asarray, (targets, positive, valid)))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(codes))
    difference = np.abs(codes[:2].astype(float) - targets[:2])
    expected = np.where(difference < 1 / 9, 4.5 * difference**2, difference - 1 / 18).sum() / 4
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert not np.asarray(gradient[2:]).any()
    step = np.zeros_like(codes)
    step[0, 1] = 1e-3
    numeric = (loss(jnp.asarray(codes + step)) - loss(jnp.asarray(codes - step))) / 2e-3
    np.testing.assert_allclose(gradient[0, 1], numeric, rtol=1e-2)


def test_area_of_a_box():
    assert area(np.array([1, 2, 4, 8])) == float(ours.areas(jnp.asarray([1.0, 2.0, 4.0, 8.0]))) == 18
