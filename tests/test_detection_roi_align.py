"""RoIAlign, targets of masks and pasted masks, against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_reference import level, pasted, roi_align

from greenjax.data.detection.paste import paste
from greenjax.models.detection import roi_align as ours

STRIDES = (4, 8, 16, 32)
BOXES = {
    "inside": (10.3, 20.7, 60.1, 44.9),
    "whole image": (0, 0, 160, 96),
    "at the border": (130, 70, 160, 96),
    "beyond the border": (-30, -20, 40, 30),
    "outside": (400, 300, 480, 390),
    "tiny": (50.2, 30.1, 50.4, 30.2),
    "no area": (20, 20, 20, 20),
    "long": (2, 40, 158, 44),
}


@pytest.fixture(scope="module")
def pyramid():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, 96 // stride, 160 // stride, 3)).astype(np.float32) for stride in STRIDES]


@pytest.mark.parametrize("few, cells", [(0, 7), (10_000, 7), (10_000, 14)])
def test_features_are_means_over_samples_of_the_right_level(pyramid, monkeypatch, few, cells):
    """By products of matrices, and by one gather."""
    monkeypatch.setattr(ours, "FEW", few)
    boxes = np.array([list(BOXES.values())] * 2, np.float32)
    boxes[1, :, ::2] *= 0.9
    found = ours.roi_align([jnp.asarray(x) for x in pyramid], jnp.asarray(boxes), STRIDES, cells)
    for image in range(2):
        for i, box in enumerate(boxes[image].astype(float)):
            at = level(box, 2, 5) - 2 if (box[2:] > box[:2]).all() else 0
            expected = roi_align(pyramid[at][image].astype(float), box / STRIDES[at], cells, 2)
            np.testing.assert_allclose(found[image, i], expected, atol=2e-5, err_msg=list(BOXES)[i])


@pytest.mark.parametrize("side, expected", [(1, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (448, 3), (5000, 3)])
def test_a_level_of_the_pyramid_follows_from_the_area(side, expected):
    assert int(ours.levels_of(jnp.asarray([0, 0, side, side], jnp.float32), STRIDES)) == expected


@pytest.mark.parametrize("few", [0, 10_000])
def test_gradients_of_features_are_those_of_finite_differences(pyramid, monkeypatch, few):
    monkeypatch.setattr(ours, "FEW", few)
    boxes = jnp.asarray([[BOXES["inside"], BOXES["at the border"]]], jnp.float32)
    levels = [jnp.asarray(x[:1]) for x in pyramid]
    loss = lambda x: jnp.square(ours.roi_align([x, *levels[1:]], boxes, STRIDES, 7)).sum()  # noqa: E731
    gradient = jax.grad(loss)(levels[0])
    assert float(jnp.abs(gradient).max()) > 0
    for place in [(0, 6, 3, 0), (0, 20, 35, 1), (0, 0, 0, 2)]:
        step = jnp.zeros_like(levels[0]).at[place].set(0.5)  # the loss is a square, so central differences are exact
        numeric = loss(levels[0] + step) - loss(levels[0] - step)
        np.testing.assert_allclose(gradient[place], numeric, rtol=1e-3, atol=1e-3)


def random_mask(rng, h, w):
    return (rng.random((h, w)) > 0.4).astype(np.float32)


def test_targets_of_masks_as_large_as_the_image():
    """As torchvision's project_masks_on_boxes: RoIAlign with as many samples a cell as it has pixels."""
    rng = np.random.default_rng(1)
    boxes = np.array([[3.3, 4.1, 30.2, 35.7], [0, 0, 64, 40], [50, 30, 64, 40], [10, 10, 10.4, 12]], np.float32)
    masks = np.stack([random_mask(rng, 40, 64) for _ in boxes])
    regions = np.array([[0, 0, 64, 40]] * len(boxes), np.float32)
    found = ours.mask_targets(*map(jnp.asarray, (masks, regions, boxes)), 14, (40, 64))
    for i, box in enumerate(boxes.astype(float)):
        np.testing.assert_allclose(found[i], roi_align(masks[i], box, 14), atol=1e-5)


def test_a_cropped_mask_has_the_targets_of_the_mask_in_its_image():
    """Inside the crop; the crop is one pixel a cell, or two by two of them."""
    rng = np.random.default_rng(2)
    whole, crop = np.zeros((40, 64), np.float32), random_mask(rng, 20, 24)
    whole[10:30, 8:32] = crop
    boxes = jnp.asarray([[8, 10, 31, 29], [12.4, 13.3, 25.9, 27.2]], jnp.float32)
    of_whole = ours.mask_targets(jnp.asarray([whole] * 2), jnp.asarray([[0.0, 0, 64, 40]] * 2), boxes, 14, (40, 64))
    regions = jnp.asarray([[8.0, 10, 32, 30]] * 2)
    np.testing.assert_allclose(
        ours.mask_targets(jnp.asarray([crop] * 2), regions, boxes, 14, (40, 64)), of_whole, atol=1e-5
    )
    flat = jnp.ones((2, 10, 12))
    np.testing.assert_allclose(ours.mask_targets(flat, regions, boxes, 14, (40, 64)), 1, atol=1e-6)


@pytest.mark.parametrize(
    "box",
    [
        (5.2, 6.7, 30.9, 25.1),
        (-8, -5, 12, 14.5),
        (40, 20, 70, 50),
        (10, 10, 10.3, 10.3),
        (100, 100, 120, 120),
        (-40, -40, -20, -20),
    ],
)
def test_masks_are_pasted_into_their_boxes(box):
    mask = np.random.default_rng(3).random((28, 28)).astype(np.float32)
    found = paste(mask[None], np.array([box], float), (36, 48))[0]
    np.testing.assert_allclose(found, pasted(mask, box, (36, 48)), atol=1e-5)


def test_nothing_is_pasted_of_nothing():
    assert paste(np.zeros((0, 28, 28)), np.zeros((0, 4)), (8, 9)).shape == (0, 8, 9)
