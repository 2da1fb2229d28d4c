"""ConvNeXt and its V2 on visible tokens: transformers' where all are visible, a masked dense network elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from masked_dense import blocks_joined, check, convolution, dense, moved, norm, pictures, seen_at
from small import small_config

import greenjax

EPSILON = 1e-6
THEIRS = {"convnext": transformers.ConvNextModel, "convnextv2": transformers.ConvNextV2Model}


@pytest.fixture(scope="module", params=THEIRS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return moved(greenjax.build(small_config(family, model__depths=(1, 2))))


def test_all_visible_equals_transformers(tmp_path, family, model):
    greenjax.save_torch(model, tmp_path / "hf", layout="hf")
    theirs, info = THEIRS[family].from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    images = pictures()
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(images).permute(0, 3, 1, 2))
    last = greenjax.features(model, images)[-1]
    np.testing.assert_allclose(last, expected.last_hidden_state.permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(model.pooled(images), expected.pooler_output, atol=1e-5)


def response_norm(x, seen, params):
    """Over the visible tokens of an image. V2, section 3.2."""
    size = jnp.sqrt(jnp.sum(x**2 * seen[..., None], axis=(1, 2), keepdims=True))
    response = size / (size.mean(axis=-1, keepdims=True) + 1e-6)
    return params["scale"] * x * response + params["bias"] + x


def reference(params, images, settings, grid, visible):
    embed = params["patch_embed"]
    x = norm(dense(blocks_joined(images, settings.patch), embed["proj"]), embed["norm"], EPSILON)
    outputs = []
    for i, depth in enumerate(settings.depths):
        stage, seen = params["stages"][i], seen_at(visible, grid.side(i))
        if i:
            b, h, w, c = x.shape
            normed = norm(x, stage["downsample"]["norm"], EPSILON)  # four tokens in turn, column by column
            four = normed.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
            x = dense(four.reshape(b, h // 2, w // 2, 4 * c), stage["downsample"]["conv"])
        for j in range(depth):
            block = stage["blocks"][j]
            y = convolution(x * seen[..., None], block["conv"]["kernel"], block["conv"]["bias"])
            y = jax.nn.gelu(dense(norm(y, block["norm"], EPSILON), block["fc1"]), approximate=False)
            if "response_norm" in block:
                y = response_norm(y, seen, block["response_norm"])
            x = x + dense(y, block["fc2"]) * block.get("layer_scale", 1)
        outputs.append(x)
    return norm(x, params["norm"], EPSILON), outputs


def test_visible_tokens_and_gradients_equal_the_masked_dense_network(model):
    check(model, reference, 0.4)


def test_each_stage_has_its_own_backend_of_the_convolutions(family):
    config = small_config(family, model__sparse_conv=("masked", "native"))
    stages = greenjax.build(config).encoder.stages
    assert [stage.blocks[0].conv.backend.backend for stage in stages] == ["masked", "native"]


def test_a_fresh_model_starts_as_published(family):
    block = greenjax.build(small_config(family)).encoder.stages[1].blocks[1]
    if family == "convnext":
        assert set(np.unique(block.layer_scale[...])) == {np.float32(1e-6)}
    else:
        assert not block.response_norm.scale[...].any() and not block.response_norm.bias[...].any()
