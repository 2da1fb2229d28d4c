"""Position bias tables of another window: each rule equals its reference."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from small import small_config
from test_interop_layouts import SWIN, random_model

import greenjax
from greenjax.backbones.swin.position_bias import bicubic, geometric, geometric_offsets, resized_table
from greenjax.interop.loading import with_image_size
from greenjax.interop.weights import flat_weights

WINDOWS = [(7, 12), (6, 7), (7, 14), (12, 7), (14, 7), (3, 4)]


def table_of(window, heads=3, seed=0):
    return np.random.default_rng(seed).normal(size=((2 * window - 1) ** 2, heads)).astype(np.float32)


def shape_of(window, heads=3):
    return (2 * window - 1) ** 2, heads


def geometric_ratio(count, reach):
    """The ratio of `count` steps 1, q, q^2, ... that sum up to `reach`, within [1.01, 1.5]."""
    ratios = np.linspace(1.01, 1.5, 490_001)
    return ratios[np.abs(sum(ratios**n for n in range(count)) - reach).argmin()]


@pytest.mark.parametrize(("source", "target"), WINDOWS)
def test_geometric_is_a_spline_through_geometrically_spaced_offsets(source, target):
    """Not-a-knot cubic splines along one axis, then the other; outside, the value at the border."""
    ratio = geometric_ratio(source - 1, target - 1)
    steps = np.cumsum(ratio ** np.arange(source - 1))
    at = np.concatenate([-steps[::-1], [0], steps])
    np.testing.assert_allclose(geometric_offsets(source, target), at, atol=1e-4)
    at = geometric_offsets(source, target)  # equal to 1e-4; the rest is compared at the same ones
    wanted = np.clip(np.arange(1 - target, target), at[0], at[-1])
    table, side = table_of(source), 2 * source - 1
    rows = CubicSpline(at, table.reshape(side, side, -1).astype(np.float64), axis=0)(wanted)
    expected = CubicSpline(at, rows, axis=1)(wanted).reshape(-1, table.shape[1])
    np.testing.assert_allclose(geometric(table, source, target), expected, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), WINDOWS)
def test_bicubic_is_pytorchs(source, target):
    table, side = table_of(source), 2 * source - 1
    picture = torch.tensor(table).T.reshape(1, -1, side, side)
    size = (2 * target - 1,) * 2
    expected = torch.nn.functional.interpolate(picture, size=size, mode="bicubic").reshape(table.shape[1], -1).T
    np.testing.assert_allclose(bicubic(table, source, target), expected.numpy(), atol=1e-5)


def test_the_same_window_keeps_every_bit():
    table = table_of(7)
    for method in ("geometric", "bicubic", "none"):
        np.testing.assert_array_equal(resized_table(table, shape_of(7), method), table)


def test_tables_that_no_window_has_and_resizes_that_are_not_wanted_are_refused():
    with pytest.raises(ValueError, match="has 170 rows: no window has so many offsets"):
        resized_table(np.zeros((170, 2), np.float32), shape_of(7), "geometric")
    with pytest.raises(ValueError, match="window is 6 in the weights, 7 here, and resize is 'none'"):
        resized_table(table_of(6), shape_of(7), "none")
    with pytest.raises(ValueError, match="window is 2 in the weights: expected at least 3"):
        resized_table(table_of(2), shape_of(7), "geometric")


@pytest.mark.parametrize("method", ["geometric", "bicubic"])
def test_another_window_is_loaded_and_said(method, tmp_path, caplog):
    """Window 4 into window 8 at twice the size: the last stage's grid of 16 shows it, all else is equal."""
    model = random_model("swin", "green")
    path = tmp_path / "weights.safetensors"
    greenjax.save_torch(model, path, "timm")
    larger = small_config(**SWIN | dict(image_size=128, model__window=8))
    loaded = greenjax.load_torch(path, larger, "timm", resize=method)
    assert f"resized ({method}) from window 4 to 8, 7 x 7 to 15 x 15 offsets: stage 1, 2" in caplog.text
    here, there = flat_weights(model), flat_weights(loaded)
    for name, value in here.items():
        if name.startswith("decoder"):
            continue
        expected = resized_table(value, shape_of(8), method) if name.endswith("table") else value
        np.testing.assert_array_equal(there[name], expected)


def test_settings_of_training_do_not_stand_in_the_way_of_another_size():
    turned = random_model("swin", "classifier", data__quarter_turns=True)
    assert with_image_size(turned, (64, 128))[0].config.image_size == (64, 128)
    detector = dict(task="detect", model__num_classes=2, detect__anchor_sizes=(4, 8, 16), detect__fpn_dim=8)
    drawn = random_model("swin", "green", **detector, detect__shorter_sides=(48, 32, 64))
    for size, sides in (((64, 48), (48, 32)), (24, ()), ((96,), (48, 32, 64))):
        assert with_image_size(drawn, size)[0].config.detect.shorter_sides == sides


def test_a_window_that_shrinks_to_its_grid_changes_its_table_too():
    model = random_model("swin", "green", model__window=8, image_size=64)  # grids of 16 and 8
    smaller, report = with_image_size(model, 32)  # 8 and 4
    assert report.lines() == [
        "position bias tables resized (geometric) from window 8 to 4, 15 x 15 to 7 x 7 offsets: stage 2"
    ]
    table = flat_weights(model)["encoder/stages/1/blocks/0/attn/relative_position_bias_table"]
    shrunk = flat_weights(smaller)["encoder/stages/1/blocks/0/attn/relative_position_bias_table"]
    np.testing.assert_array_equal(shrunk, geometric(table, 8, 4))
