"""Windows that zeros fill up at the border (`model.border` = "pad"), on grids that are no multiple of anything.

The references are written in PyTorch from the definition, for whole grids: torch_swin.py and torch_twins.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from masked_dense import moved
from safetensors.torch import load_file
from small import small_config
from test_twins import pair
from torch_swin import TorchSwin

import greenjax
from greenjax.backbones.family import square_windows
from greenjax.planning import StageSpec, TokenGrid, dense_plan


def padded(family="swin", **overrides):
    colours = dict(model__in_channels=3, data__mean=(0.0,) * 3, data__std=(1.0,) * 3)
    settings = colours | dict(task="finetune", model__border="pad", model__num_classes=5)
    return moved(greenjax.build(small_config(family, **settings | overrides)))


def some_images(size):
    return np.random.default_rng(3).normal(size=(2, *size, 3)).astype(np.float32)


def swins(size, window, path):
    """A model, and its PyTorch reference with the same weights."""
    shape = dict(model__depths=(2, 3, 2), model__num_heads=(1, 2, 4), model__window=window)
    model = padded(image_size=size, **shape)
    greenjax.save_torch(model, path, "timm")
    # In the official names, a merging belongs to the stage before it.
    tensors = {
        name.replace(f"layers.{i}.down", f"layers.{i - 1}.down").replace("head.fc", "head"): tensor
        for name, tensor in load_file(path).items()
        for i in [int(name.split(".")[1]) if name.startswith("layers") else 0]
    }
    reference = TorchSwin(size, 8, (2, 3, 2), (1, 2, 4), window, patch=2, classes=5, padded=True)
    missing, unexpected = reference.load_state_dict(tensors, strict=False)
    assert not unexpected and all(name.endswith(("index", "mask")) for name in missing)
    return model, reference


SIZES = [
    ((46, 37), 3),  # grids 23 x 18, 12 x 9, 6 x 5; and the last column of pixels fills no patch
    ((22, 64), 7),  # 11 x 32, 6 x 16, 3 x 8: windows larger than the grid on one axis
]


@pytest.mark.parametrize(("size", "window"), SIZES, ids=str)
def test_swin_equals_pytorch_in_values_and_gradients(size, window, tmp_path):
    model, reference = swins(size, window, tmp_path / "weights.safetensors")
    images = some_images(size)
    pixels = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    _, stages = reference(pixels)
    weights = [np.random.default_rng(4).normal(size=stage.shape).astype(np.float32) for stage in stages]
    sum((stage * torch.tensor(weight)).sum() for stage, weight in zip(stages, weights)).backward()
    graphdef, state = nnx.split(model)

    @jax.jit
    def ours(state, images):
        def loss(state, images):
            maps = nnx.merge(graphdef, state).feature_maps(images)
            return sum((x * w).sum() for x, w in zip(maps, weights)), maps

        return jax.grad(loss, (0, 1), has_aux=True)(state, images)

    (gradients, of_images), maps = ours(state, jnp.asarray(images))
    for found, again, expected in zip(maps, greenjax.features(model, images), stages, strict=True):
        np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
        np.testing.assert_allclose(again, found, atol=1e-6 * np.abs(found).max())  # two programs
    largest = pixels.grad.abs().max()
    np.testing.assert_allclose(of_images, pixels.grad.permute(0, 2, 3, 1), atol=1e-5 * largest)
    for i, j in ((0, 0), (0, 1), (1, 2), (2, 1)):  # regular and shifted; zeros get their values from these biases
        found, block = gradients.encoder.stages[i].blocks[j].attn, reference.layers[i].blocks[j].attn
        largest = block.qkv.bias.grad.abs().max()
        np.testing.assert_allclose(found.qkv.bias[...], block.qkv.bias.grad, atol=1e-5 * largest)
        expected = block.relative_position_bias_table.grad
        np.testing.assert_allclose(found.relative_position_bias_table[...], expected, atol=1e-5 * expected.abs().max())


def test_swin_v2_equals_transformers(tmp_path):
    model = padded("swinv2", image_size=(28, 52), model__window=5)  # grids 14 x 26 and 7 x 13
    assert not any("grid" in line for line in greenjax.save_torch(model, tmp_path / "hf", layout="hf"))
    theirs = transformers.Swinv2Model.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
    images = some_images((28, 52))
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state
    np.testing.assert_allclose(jax.jit(model.dense)(images)[0], expected, atol=1e-5)


def test_twins_equals_pytorch():
    overrides = dict(task="finetune", model__border="pad", model__num_classes=5)
    model, twins = pair("twins", (2, 3), (72, 40), 4, (2, 1), **overrides)  # grids 18 x 10 and 9 x 5
    images = some_images((72, 40))
    with torch.no_grad():
        _, stages = twins(torch.tensor(images), torch.ones(model.grid.units, dtype=torch.bool))
    for found, expected in zip(greenjax.features(model, images), stages, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"image_size is \(72, 44\): expected multiples of 8"):
        pair("twins", (2, 3), (72, 44), 4, (2, 1), **overrides)


def test_without_a_border_to_fill_up_it_is_the_model_that_cuts():
    size = dict(image_size=(32, 64), model__window=4)
    ours, cutting = padded(**size), padded(**size, model__border="cut")
    images = some_images((32, 64))
    np.testing.assert_allclose(ours(images), cutting(images), atol=1e-6)


@pytest.mark.parametrize(("size", "window"), [((46, 37), 3), ((22, 64), 7), ((90, 90), 4)], ids=str)
def test_every_token_and_every_zero_stands_in_one_slot(size, window):
    grid = TokenGrid(*size, patch=2, stages=3, padded=True)
    specs = [StageSpec(square_windows(window, grid.shape(i), 2, shifted=True, padded=True)) for i in range(3)]
    for stage, groupings in enumerate(dense_plan(grid, tuple(specs)).windows):
        rows, columns = grid.shape(stage)
        tokens, exists = grid.exists(stage).size, grid.exists(stage).ravel()
        zeros = (rows + -rows % window) * (columns + -columns % window) - rows * columns
        for grouping in groupings:
            token = grouping.token.ravel()
            assert grouping.slot.size == tokens + zeros and exists.sum() == rows * columns
            assert sorted(token[token < tokens + zeros]) == list(range(tokens + zeros))
            assert np.array_equal(token[grouping.slot], np.arange(tokens + zeros))
            attending = grouping.window.ravel() >= 0
            assert attending.sum() == rows * columns + zeros
            assert not attending[grouping.slot[:tokens]][~exists].any()
