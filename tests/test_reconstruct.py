"""Pictures of reconstructions show what they say."""

import numpy as np
import pytest
from einops import rearrange
from PIL import Image
from small import small_config

from greenjax.backbones.geometry import make_planner
from greenjax.data.loader import eval_batches
from greenjax.data.open import open_source
from greenjax.evaluation.held_out import Pictures
from greenjax.evaluation.pictures import reconstruct
from greenjax.evaluation.pictures.reconstruct import GREY, Colours, hide, paste, sheet
from greenjax.training.state import model_graph

MEAN = {1: (0.3,), 2: (0.3, 0.2), 3: (0.485, 0.456, 0.406), 5: (0.5,) * 5}
STD = {1: (0.4,), 2: (0.4, 0.3), 3: (0.229, 0.224, 0.225), 5: (0.25,) * 5}


def example(channels=3, unit=8, size=(32, 48), n=4, seed=0):
    """Images with one flat unit, masks, and the true targets: colour-normalised, and per unit on top."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *size, channels), np.uint8)
    images[:, :unit, :unit] = 17
    grid = size[0] // unit, size[1] // unit
    visible = rng.permuted(np.arange(n * grid[0] * grid[1]).reshape(n, -1) % 4 == 0, axis=1).reshape(n, *grid)
    normal = (images / 255 - np.array(MEAN[channels])) / np.array(STD[channels])
    units = rearrange(normal, "n (a p) (b q) c -> n (a b) (p q c)", p=unit, q=unit)
    deviation = np.sqrt(units.var(-1, ddof=1, keepdims=True) + 1e-6)
    return images, visible, units, (units - units.mean(-1, keepdims=True)) / deviation


def colours(channels):
    return dict(colours=Colours(MEAN[channels], STD[channels]))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("normalised", [False, True])
def test_true_targets_give_the_original(channels, normalised):
    images, visible, units, per_unit = example(channels)
    prediction = (per_unit if normalised else units).astype(np.float32)
    result = paste(images, visible, prediction, 8, **colours(channels), normalised=normalised)
    np.testing.assert_array_equal(result, images)


def test_a_unit_may_have_several_patches():
    (images, _, _, per_patch), (_, visible, _, _) = example(unit=8), example(unit=16)
    result = paste(images, visible, per_patch.astype(np.float32), 8, **colours(3), normalised=True)
    np.testing.assert_array_equal(result, images)
    assert np.array_equal((hide(images, visible) == images).all(axis=-1), visible.repeat(16, axis=1).repeat(16, axis=2))


def test_only_masked_units_come_from_the_prediction():
    images, visible, units, _ = example()
    result = paste(images, visible, np.full_like(units, 1e9), 8, **colours(3), normalised=False)
    shown = visible.repeat(8, axis=1).repeat(8, axis=2)
    assert np.all(result[shown] == images[shown])
    assert np.all(result[~shown] == 255)
    assert np.all(hide(images, visible)[~shown] == GREY)
    assert np.all(hide(images, visible)[shown] == images[shown])


def test_a_model_that_diverged_can_be_drawn(tmp_path):
    images, visible, units, _ = example()
    units[:, ::2], units[:, 1::2] = np.nan, -np.inf
    for n in (len(images), 0):  # 0: no image of the first batch can be used
        sheet(images[:n], visible[:n], units[:n], patch=8, **colours(3), normalised=True).save(tmp_path / "p.png")


@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (2, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_every_picture_lies_in_the_file_pixel_by_pixel(tmp_path, monkeypatch, channels, kept, n):
    images, visible, units, _ = example(channels, n=n)
    captions = caught_captions(monkeypatch)
    path = tmp_path / "p.png"
    sheet(images, visible, units, patch=8, **colours(channels), normalised=False).save(path)
    with Image.open(path) as opened:
        drawn = np.asarray(opened.convert("RGB"))
    for expected in (images[-1], hide(images, visible)[-1]):
        wanted = np.broadcast_to(expected[..., :kept], (*expected.shape[:2], 3))
        assert contains(drawn, wanted.repeat(4, axis=0).repeat(4, axis=1))
    assert (f"Of {channels} channels the first {kept} are shown." in captions[0]) == (kept < channels)


def caught_captions(monkeypatch):
    captions = []
    monkeypatch.setattr(reconstruct.textwrap, "wrap", lambda text, _: captions.append(text) or [text])
    return captions


def contains(drawn, picture):
    """Whether the picture lies somewhere in the drawing, by the first row of its pixels."""
    h, w, _ = picture.shape
    rows = np.lib.stride_tricks.sliding_window_view(drawn, (1, w, 3))[: len(drawn) - h + 1, :, 0, 0]
    places = np.argwhere((rows == picture[0]).all(axis=(2, 3)))
    return any(np.array_equal(drawn[y : y + h, x : x + w], picture) for y, x in places)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_caption_says_where_mean_and_variance_come_from(tmp_path, monkeypatch, normalised):
    images, visible, units, _ = example()
    captions = caught_captions(monkeypatch)
    sheet(images, visible, units, patch=8, **colours(3), normalised=normalised).save(tmp_path / "p.png")
    assert ("target's mean and variance" in captions[0]) == normalised


@pytest.mark.parametrize(("images", "shown"), [(3, 3), (9, 8), (17, 8), (33, 8), (64, 8), (200, 8)])
def test_a_few_held_out_images_are_drawn_whatever_mask_groups_they_fill(images, shown):
    config = small_config(mask__groups=8, data__batch_size=128, mesh__data=1, model__depths=(1, 1))
    planner, source = make_planner(config), open_source(config.data, f"test[:{images}]")
    first = next(eval_batches(config, source, planner))
    pictures = Pictures(config, first, model_graph(config), lambda batch: batch, planner.grid, True)
    assert pictures.shown.sum() == shown


@pytest.mark.parametrize(
    ("groups", "batch", "shown"), [(1, 1, 1), (2, 2, 2), (1, 5, 5), (2, 6, 6), (4, 8, 8), (3, 9, 9)]
)
def test_a_batch_of_any_size_is_drawn(groups, batch, shown, tmp_path, monkeypatch):
    config = small_config(mask__groups=groups, data__batch_size=batch, mesh__data=1)
    planner, source = make_planner(config), open_source(config.data, "test")
    first, grid = next(eval_batches(config, source, planner)), planner.grid
    pictures = Pictures(config, first, model_graph(config), lambda batch: batch, grid, True)
    assert len(pictures.images) == len(pictures.visible) == len(pictures.shown) == shown
    units = grid.units[0] * grid.units[1]
    prediction = np.zeros((groups, shown // groups, units, grid.unit**2), np.float32)
    monkeypatch.setattr(pictures, "_predict", lambda params, batch: prediction)
    pictures.draw(tmp_path / "picture.png", None)
    assert (tmp_path / "picture.png").stat().st_size > 100
