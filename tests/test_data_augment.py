"""Augmentation: a view is a function of (seed, index), crops have the asked-for statistics, sizes are as configured."""

import math
import threading

import cv2
import numpy as np
import pytest
from small import small_config

from greenjax.data.augment import CentreView, RandomView, centre_box, random_box, resize, to_channels
from greenjax.data.encoded import DecodeError


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_views_are_a_function_of_seed_and_index():
    view, other = (RandomView(seed, (16, 24), 3, (0.2, 1.0), (0.75, 4 / 3), True) for seed in (0, 1))
    image = noise(40, 50)
    views = [view(image, index) for index in range(50)]
    assert all(np.array_equal(view(image, index), views[index]) for index in reversed(range(50)))
    assert len({v.tobytes() for v in views}) == 50
    assert not np.array_equal(other(image, 0), views[0])
    assert all(v.shape == (16, 24, 3) and v.dtype == np.uint8 and v.flags.c_contiguous for v in views)


def test_half_of_the_views_are_flipped():
    ramp = np.tile(np.arange(0, 250, 10, dtype=np.uint8)[None, :, None], (25, 1, 1))
    view = RandomView(0, (8, 8), 1, (0.2, 1.0), (0.75, 4 / 3), True)
    flipped = [bool(v[0, 0, 0] > v[0, -1, 0]) for v in (view(ramp, index) for index in range(400))]
    assert 160 < sum(flipped) < 240
    still = RandomView(0, (8, 8), 1, (0.2, 1.0), (0.75, 4 / 3), False)
    assert not any(v[0, 0, 0] > v[0, -1, 0] for v in (still(ramp, index) for index in range(50)))


def test_random_boxes_fill_the_ranges_and_lie_inside():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box((300, 400), (0.2, 1.0), (0.75, 4 / 3), rng.random(22)) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (np.minimum(top, left) >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    area, ratio = height * width / (300 * 400), width / height
    assert area.min() > 0.195 and area.min() < 0.21 and area.max() > 0.9
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
    small = [random_box((300, 400), (0.2, 0.4), (0.5, 2.0), rng.random(22)) for _ in range(2000)]
    assert np.mean([np.log(w / h) for _, _, h, w in small]) == pytest.approx(0, abs=0.04)  # log-uniform
    corners = {random_box((2, 2), (0.25, 0.25), (1.0, 1.0), rng.random(22))[:2] for _ in range(100)}
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    "size, box", [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((9, 10), (0, 0, 9, 10))]
)
def test_where_no_crop_fits_the_centre_is_taken(size, box):
    assert centre_box(size, (0.75, 4 / 3)) == box
    if size != (9, 10):
        assert random_box(size, (0.9, 1.0), (0.75, 4 / 3), np.full(22, 0.5)) == box


@pytest.mark.parametrize("size, expected", [((50, 100), (16, 24)), ((100, 50), (16, 24)), ((8, 8), (16, 24))])
def test_the_held_out_view_is_the_centre(size, expected):
    """A picture bright in its centre and dark at the border that is to be cut keeps its centre."""
    image = np.zeros((*size, 1), np.uint8)
    image[size[0] // 2 - 2 : size[0] // 2 + 2, size[1] // 2 - 2 : size[1] // 2 + 2] = 255
    view = CentreView(expected, 1)(image, 0)
    assert view.shape == (*expected, 1)
    weights = view[..., 0] / view.sum()
    centre = [(weights.sum(axis=1 - axis) * np.arange(expected[axis])).sum() for axis in (0, 1)]
    assert centre == pytest.approx([(side - 1) / 2 for side in expected], abs=0.6)


@pytest.mark.parametrize("share", [0.875, 1.0])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (64, 64)])
def test_eval_crop_is_the_share_of_the_shorter_side(size, share):
    """224 of 256 pixels: 0.875. The cut is around the centre and at the same scale in both directions."""
    for axis in (0, 1):
        ramp = np.broadcast_to(np.ogrid[: size[0], : size[1]][axis], size).astype(np.uint8)[..., None]
        view = CentreView((28, 28), 1, share)(ramp, 0)
        assert np.ptp(view) == pytest.approx(64 * share * 27 / 28, abs=1.5)  # from first to last pixel's centre
        assert view.mean() == pytest.approx((size[axis] - 1) / 2, abs=0.7)
    assert CentreView.from_config(small_config(data__eval_crop=share)).share == share


def whole_then_cut(view, image):
    """The definition of CentreView: the whole image resized until it covers, then its centre."""
    height, width = image.shape[:2]
    scale = max(view.size[0] / height, view.size[1] / width) / view.share
    covering = max(view.size[0], round(height * scale)), max(view.size[1], round(width * scale))
    top, left = ((side - shown) // 2 for side, shown in zip(covering, view.size))
    return resize(image, covering)[top : top + view.size[0], left : left + view.size[1]]


@pytest.mark.parametrize("size", [(40, 50), (50, 40), (7, 50), (300, 77), (9, 9), (1, 6), (64, 250), (400, 50)])
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_an_ordinary_image_is_resized_whole(size, share):
    for view in (CentreView((16, 16), 3, share), CentreView((16, 24), 3, share)):
        if view.cover(size)[0][2:] == size:
            image = noise(*size)
            assert np.array_equal(view(image, 0), whole_then_cut(view, image))
    assert CentreView((16, 16), 3, share).cover((700, 100))[0] == (0, 0, 700, 100)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 999), (10, 3001), (3001, 10), (100, 2000), (51, 4000)])
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_a_thin_image_loses_its_ends_before_it_is_enlarged(size, share, monkeypatch):
    """The view stays where it was, to half a pixel of it, and no image much larger than the view is made."""
    made, cv2_resize, this_thread = [], cv2.resize, threading.get_ident()

    def noted(image, size, **how):
        if threading.get_ident() == this_thread:  # others may still load the images of another test
            made.append(math.prod(size))
        return cv2_resize(image, size, **how)

    waves = (np.sin(np.linspace(0, 2 * np.pi * side / min(size), side) / 3) for side in size)
    image = np.uint8(127.5 + 60 * np.add.outer(*waves))[..., None]
    view = CentreView((24, 24), 1, share)
    expected = whole_then_cut(view, image)
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "resize", noted)
        found = view(image, 0)
    assert len(made) == 1 and made[0] <= (10 / share) * (24 / share) * 24
    assert np.abs(found.astype(int) - expected).max() <= 3  # of 255, where half a pixel is 2.5


def test_shrinking_averages_and_enlarging_is_bicubic():
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))[:, :, None]
    assert (resize(stripes, (32, 32)) == 100).all()
    step = np.repeat(np.array([50, 200], np.uint8), 8)[None, :, None].repeat(16, axis=0)
    large = resize(step, (64, 64))
    assert large.min() < 50 and large.max() > 200  # bicubic overshoots, bilinear would not
    assert resize(step, (16, 16)) is step


def test_grey_and_colour_become_each_other():
    grey = noise(5, 6, 1)
    assert np.array_equal(to_channels(grey, 3), np.repeat(grey, 3, axis=2))
    assert np.array_equal(to_channels(to_channels(grey, 3), 1), grey)
    with pytest.raises(DecodeError, match=r"it has 3 channels: expected 2 \(model\.in_channels, data\.channels\)"):
        to_channels(noise(5, 6, 3), 2)
