"""RandAugment and random erasing: functions of (seed, index), of strengths that grow, harmless where they should be."""

import pickle

import numpy as np
import pytest
from small import small_config

from greenjax.data import randaugment
from greenjax.data.augment import generator
from greenjax.data.randaugment import OPERATIONS, Erasing, RandAugment, labelled_view, mean_colour, to_pillow
from greenjax.data.reading import is_there

FILL = {1: 90, 3: (120, 110, 100)}


def photo(channels=3, height=24, width=32):
    """Waves between 20 and 220 that grow brighter to the right and downwards."""
    y, x = np.mgrid[:height, :width]
    ramp = 20 + 180 * (x + y) / (height + width - 2) + 10 * (1 + np.sin(x + y))
    return np.stack([ramp, 0.7 * ramp, 240 - ramp][:channels], axis=-1).astype(np.uint8)


def apply(name, level, channels=3):
    image = photo(channels)
    return np.array(OPERATIONS[name](to_pillow(image), level, FILL[channels])).reshape(image.shape)


def change(name, level, channels=3):
    """Mean absolute difference from the image as it was."""
    return np.abs(apply(name, level, channels).astype(int) - photo(channels)).mean()


# The operations


WITHOUT_STRENGTH = ("autocontrast", "equalize", "invert")
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
DIRECTED = ("colour", "contrast", "brightness", "sharpness", *MOVES)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_size_and_kind_of_every_image(name):
    for channels in (1, 3):
        for level in (-1.0, -0.3, 0.0, 0.9, 1.0):
            result = apply(name, level, channels)
            assert result.dtype == np.uint8 and result.shape == photo(channels).shape


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in WITHOUT_STRENGTH])
def test_strength_grows_with_the_magnitude(name):
    weak, middle, strong = (change(name, level) for level in (0.1, 0.5, 0.9))
    assert weak <= middle <= strong and strong > weak
    assert change(name, 0.0) < 1 or name == "posterize"  # it leaves four bits at most


@pytest.mark.parametrize("name", OPERATIONS)
def test_only_some_operations_have_a_direction(name):
    assert np.array_equal(apply(name, 0.8), apply(name, -0.8)) == (name not in DIRECTED)


def test_operations_do_what_they_are_called():
    image = photo().astype(int)
    assert np.array_equal(apply("invert", 0.5), 255 - image)
    assert (apply("posterize", 0.9) % 128 == 0).all() and (apply("posterize", 1.0) % 128 == 0).all()
    assert np.array_equal(apply("posterize", 0.3), image // 32 * 32)  # three bits
    assert np.array_equal(apply("solarize", 0.5), np.where(image < 128, image, 255 - image))
    assert np.array_equal(apply("solarize_add", 0.5), np.where(image < 128, image + 55, image))
    assert apply("autocontrast", 1.0).min() == 0 and apply("autocontrast", 1.0).max() == 255
    assert apply("brightness", -1.0).mean() == pytest.approx(0.1 * image.mean(), abs=1)
    assert np.ptp(apply("contrast", -1.0)[..., 0]) == pytest.approx(0.1 * np.ptp(image[..., 0]), abs=2)
    grey = apply("colour", -1.0)
    assert np.ptp(grey, axis=2).mean() < 0.15 * np.ptp(image, axis=2).mean()


def test_what_moves_moves_by_so_much_and_uncovers_the_fill():
    moved = apply("translate_x", 7 / (0.45 * 32))
    assert (moved[:, -7:] == FILL[3]).all() and np.array_equal(moved[:, 2:20], photo()[:, 9:27])
    assert (apply("translate_y", -0.5)[:4] == FILL[3]).all()
    sheared = apply("shear_x", 1.0)  # by 0.3 pixels a row
    assert np.abs(sheared[0].astype(int) - photo()[0]).mean() < 3 and (sheared[-1, -6:] == FILL[3]).all()
    corners = apply("rotate", 1.0, channels=1)[[0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert (corners == FILL[1]).all()


def test_colour_operations_treat_a_grey_image_as_three_equal_channels():
    grey = np.repeat(photo(1), 3, axis=2)
    for name, operation in OPERATIONS.items():
        colour = np.array(operation(to_pillow(grey), 0.7, (90, 90, 90)))
        assert np.abs(colour.astype(int) - apply(name, 0.7, channels=1)).max() <= 1
    assert change("colour", 0.9, channels=1) == 0


# RandAugment


def test_an_augmented_image_is_a_function_of_seed_and_index():
    ours, again, other = (RandAugment(seed, 9.0, 2, FILL[3]) for seed in (0, 0, 1))
    images = [ours(photo(), index) for index in range(40)]
    again = pickle.loads(pickle.dumps(again))
    assert all(np.array_equal(again(photo(), index), images[index]) for index in reversed(range(40)))
    assert len({image.tobytes() for image in images}) > 20
    assert any(not np.array_equal(other(photo(), index), images[index]) for index in range(40))


def test_every_operation_comes_half_of_the_time_at_about_the_magnitude(monkeypatch):
    seen = []

    def record(name):
        return lambda image, level, fill: (seen.append((name, level)), image)[1]

    monkeypatch.setattr(randaugment, "OPERATIONS", {name: record(name) for name in OPERATIONS})
    augment = RandAugment(0, 9.0, 2, FILL[3])
    for index in range(3000):
        augment(photo(height=2, width=2), index)
    names, levels = zip(*seen)
    assert len(seen) == pytest.approx(3000, rel=0.06)  # of 6000 layers
    counts = np.unique(names, return_counts=True)[1]
    assert len(counts) == 15 and counts.min() > 140 and counts.max() < 260
    sizes = 10 * np.abs(levels)
    assert sizes.mean() == pytest.approx(9, abs=0.05) and sizes.std() == pytest.approx(0.5, abs=0.05)
    assert sizes.max() == 10 and np.mean(np.sign(levels)) == pytest.approx(0, abs=0.06)


def test_the_image_itself_is_left_alone():
    image = photo()
    for step in (RandAugment(0, 9.0, 2, FILL[3]), Erasing(0, 1.0, (0.5,) * 3, (0.2,) * 3)):
        for index in range(10):
            step(image, index)
    assert np.array_equal(image, photo())


def test_fill_is_the_mean_colour():
    """Of pixels that are divided by 255, as by default, and of pixels that are not divided."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for scale, by in ((0.0, 1), (1.0, 255)):
        data = dict(data__mean=tuple(by * mean), data__std=tuple(by * std), data__scale=scale, data__randaugment=9.0)
        config = small_config(task="finetune", model__in_channels=3, **data)
        assert labelled_view(config).after[0].fill == (124, 116, 104)
    assert mean_colour((0.5,), 255.0) == 128 and mean_colour((-0.1, 2.0), 255.0) == (0, 255)


# Random erasing


def boxes(erasing, count, height=40, width=50):
    """What was erased of images that are white all over: masks."""
    white = np.full((height, width, 1), 255, np.uint8)
    return [(erasing(white, index) != 255)[..., 0] for index in range(count)]


def test_a_box_of_the_asked_for_area_and_shape_is_erased_as_often_as_asked_for():
    masks = boxes(Erasing(0, 0.25, (0.3,), (0.05,)), 2000)
    erased = [mask for mask in masks if mask.any()]
    assert len(erased) == pytest.approx(500, abs=80)
    areas, ratios = [], []
    for mask in erased:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width  # one box, all of it
        areas.append(height * width / mask.size)
        ratios.append(width / height)
    assert min(areas) > 0.015 and max(areas) < 0.35 and np.mean(areas) == pytest.approx(0.177, abs=0.03)
    assert min(ratios) > 0.2 and max(ratios) < 4 and np.mean(np.log(ratios)) == pytest.approx(0, abs=0.15)
    assert not np.any(boxes(Erasing(0, 0.0, (0.3,), (0.05,)), 50))


def test_erased_pixels_are_standard_normal_once_colours_are_normalised():
    mean, std = np.array([0.5, 0.4, 0.45]), np.array([0.1, 0.12, 0.08])
    erasing = Erasing(0, 1.0, tuple(mean), tuple(std))
    white = np.full((64, 64, 3), 255, np.uint8)
    pixels = np.concatenate([(image := erasing(white, i))[(image != 255).any(axis=2)] for i in range(30)])
    normalised = (pixels / 255 - mean) / std
    assert np.abs(normalised.mean(axis=0)).max() < 0.03 and np.abs(normalised.std(axis=0) - 1).max() < 0.03
    assert np.abs(np.corrcoef(normalised.T) - np.eye(3)).max() < 0.03  # every channel draws for itself


@pytest.mark.parametrize("no_data", ["nan", "-9999"])
def test_missing_pixels_stay_missing_in_an_erased_box(no_data):
    config = small_config(task="knn", data__dtype="float32", data__no_data=no_data, data__erasing=1.0)
    (erasing,) = labelled_view(config).after
    there = np.random.default_rng(0).random((24, 24, 1)) < 0.5
    found = erasing(np.where(there, 7, float(no_data)).astype(np.float32), 3)
    np.testing.assert_array_equal(is_there(found, no_data), there)
    assert np.count_nonzero(found[there] != 7) > 10


@pytest.mark.parametrize("no_data", [0, 65535])
def test_noise_at_the_limit_of_a_type_is_no_missing_pixel(no_data):
    erasing = Erasing(0, 1.0, (no_data / 65535,), (0.1,), 65535.0, str(no_data))
    found = erasing(np.full((24, 24, 1), 7, np.uint16), 3)
    assert is_there(found, str(no_data)).all() and np.count_nonzero(abs(found.astype(int) - no_data) == 1) > 10


# The view


def test_the_view_of_labelled_images():
    """Nothing more than in pre-training where nothing is asked for; else that first, whatever comes after."""
    plain = small_config()
    assert labelled_view(plain).after == ()
    both = labelled_view(small_config(task="knn", data__randaugment=9.0, data__erasing=0.3))
    randaugmented, erasing = both.after
    image = photo(1)
    for index in range(20):
        first = labelled_view(plain)(image, index)
        view = both(image, index)
        assert np.array_equal(view, erasing(randaugmented(first, index), index))
        assert view.shape == (32, 32, 1) and view.dtype == np.uint8


def test_parts_of_an_image_s_random_numbers_differ():
    draws = [generator(3, 5, part).random(20) for part in range(3)]
    assert np.array_equal(draws[0], np.random.Generator(np.random.Philox(key=(3, 5))).random(20))
    assert len({draw.tobytes() for draw in draws}) == 3
