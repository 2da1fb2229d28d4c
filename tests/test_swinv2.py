"""Swin V2 on visible tokens: equal to transformers' where all are visible, to a masked dense network elsewhere."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from masked_dense import attention, blocks_joined, check, dense, mlp, moved, norm, offsets, pictures, seen_at
from small import small_config

import greenjax
from greenjax.backbones.swinv2.encoder import log_offsets
from greenjax.backbones.swinv2.weights import LAYOUTS
from greenjax.interop.layouts import export_line
from greenjax.interop.loading import with_image_size
from greenjax.interop.weights import flat_weights
from greenjax.models.parameters import decayed
from greenjax.runtime.checkpoint import flatten_tree

EPSILON = 1e-5


@pytest.fixture(scope="module")
def model():
    return moved(greenjax.build(small_config("swinv2", model__depths=(2, 2), model__pretrained_windows=(3, 0))))


def in_torch(model, folder, images):
    """transformers' model of the same weights, and its last tokens."""
    greenjax.save_torch(model, folder, layout="hf")
    theirs, info = transformers.Swinv2Model.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(info.values())
    return theirs, theirs.eval()(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state


@pytest.mark.parametrize(("size", "window"), [((32, 32), 4), ((20, 20), 5), ((32, 32), 16), ((16, 32), 8)], ids=str)
def test_all_visible_equals_transformers(tmp_path, size, window):
    """Shifted windows; windows larger than the last grid; one window for all rows, and two columns of them. Windows
    that the grid cuts cannot run there."""
    model = moved(greenjax.build(small_config("swinv2", model__window=window, image_size=size)))
    images = np.random.default_rng(1).normal(size=(2, *size, 1)).astype(np.float32)
    _, expected = in_torch(model, tmp_path / "hf", images)
    out = model(images, np.ones(model.grid.units, bool))
    np.testing.assert_allclose(out.latent, expected.detach(), atol=1e-5)


def test_another_image_size_keeps_the_bias_of_every_offset(tmp_path):
    """At 16 pixels the last grid has 4 tokens a side, and at 32 pixels the window of 8: what it was trained with."""
    config = small_config("swinv2", task="knn", model__depths=(1, 1), model__window=8, image_size=16)
    model = moved(greenjax.build(config))
    larger, report = with_image_size(model, 32)
    assert report.lines() == ["model.pretrained_windows is (8, 4), as the weights were trained"]
    tables = [each.encoder.stages[1].blocks[0].attn.position_mlp() for each in (model, larger)]
    before, after = (np.asarray(table).reshape(side, side, -1) for table, side in zip(tables, (7, 15)))
    np.testing.assert_array_equal(after[4:11, 4:11], before)
    greenjax.save_torch(larger, tmp_path / "hf", "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["pretrained_window_sizes"] == [8, 4]
    assert not with_image_size(model, 16)[1].lines()


@pytest.mark.parametrize(("size", "window"), [(32, 16), (48, 24)])
def test_windows_larger_than_in_pre_training_equal_transformers(tmp_path, size, window):
    """As swinv2_base_window12to16 and window12to24: values, and the gradients of every parameter of the encoder, which
    transformers writes in the place of its weights."""
    options = dict(task="knn", model__depths=(1, 1), model__window=window, model__pretrained_windows=(12, 6))
    model, images = moved(greenjax.build(small_config("swinv2", **options, image_size=size))), pictures(size=size)
    theirs, expected = in_torch(model, tmp_path / "hf", images)
    assert theirs.config.pretrained_window_sizes == [12, 6]
    weights = np.random.default_rng(2).normal(size=expected.shape).astype(np.float32)
    graphdef, state = nnx.split(model)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def learn(state):
        latent, _ = nnx.merge(graphdef, state).dense(jnp.asarray(images))
        return (latent * weights).sum(), latent

    (_, latent), gradients = learn(state)
    np.testing.assert_allclose(latent, expected.detach(), atol=1e-5)
    (expected * torch.tensor(weights)).sum().backward()
    for parameter in theirs.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    theirs.save_pretrained(tmp_path / "gradients")
    there = flat_weights(greenjax.load_torch(tmp_path / "gradients", model.config, "hf"))
    for name, gradient in flatten_tree(nnx.to_pure_dict(gradients)).items():
        np.testing.assert_allclose(gradient, there[name], atol=1e-5 * np.abs(there[name]).max(), err_msg=name)


def test_more_rows_than_columns_in_a_window_are_refused(tmp_path):
    """transformers shrinks windows to the rows, and shifts columns with them."""
    model = greenjax.build(small_config("swinv2", image_size=(32, 16), model__window=8))
    expected = r"stage 1 has a grid of 16 x 8 tokens with a window of 8, and the library's windows follow the rows"
    with pytest.raises(ValueError, match=expected):
        greenjax.save_torch(model, tmp_path / "hf", layout="hf")


def position_bias(params, window, dy, dx):
    """Section 3.3, equations 3 and 4, for each pair of tokens by itself; `window` is that of the pre-training."""
    offset = np.stack([dy, dx], axis=-1) / max(window - 1, 1) * 8
    log = (np.sign(offset) * np.log2(1 + np.abs(offset)) / np.log2(8)).astype(np.float32)
    return 16 * jax.nn.sigmoid(dense(jax.nn.relu(dense(log, params["fc1"])), params["fc2"]))


def cosine_attention(grid, seen, params, heads, window, pretrained, shift):
    """Section 3.2, equation 2, of all tokens to the visible ones of their window."""
    b, h, w, c = grid.shape
    same, dy, dx = offsets((h, w), window, shift)
    tokens = grid.reshape(b, h * w, c)
    q, k, v = jnp.split(dense(tokens, params["qkv"]), 3, axis=-1)
    q, k, v = (a.reshape(b, h * w, heads, -1) for a in (q + params["q_bias"], k, v + params["v_bias"]))
    q, k = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k))
    q = q * jnp.exp(jnp.minimum(params["logit_scale"], np.log(100)))[:, None]
    near = np.where(same, dy, 0), np.where(same, dx, 0)
    y = attention(q, k, v, position_bias(params["position_mlp"], pretrained, *near), same & seen.ravel())
    return dense(y.reshape(b, h, w, c), params["proj"])


def reference(params, images, settings, grid, visible):
    """The latent and the tokens of every stage, of visible and masked units alike."""
    embed = params["patch_embed"]
    x = norm(dense(blocks_joined(images, settings.patch), embed["proj"]), embed["norm"], EPSILON)
    outputs = []
    for i, depth in enumerate(settings.depths):
        seen = seen_at(visible, grid.side(i))
        window = min(settings.window, *seen.shape)
        for j in range(depth):
            block = params["stages"][i]["blocks"][j]
            shift = window // 2 if j % 2 and min(seen.shape) > window else 0
            pretrained = (settings.pretrained_windows or (0, 0))[i] or window
            attended = cosine_attention(x, seen, block["attn"], settings.num_heads[i], window, pretrained, shift)
            x = x + norm(attended, block["norm1"], EPSILON)
            x = x + norm(mlp(x, block["mlp"]), block["norm2"], EPSILON)
        outputs.append(x)
        if i + 1 < len(settings.depths):
            b, h, w, c = x.shape  # the four tokens of a block, column by column
            four = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
            merging = params["stages"][i]["downsample"]
            x = norm(dense(four, merging["reduction"]), merging["norm"], EPSILON)
    return norm(x, params["norm"], EPSILON), outputs


def test_visible_tokens_and_gradients_equal_the_masked_dense_network(model):
    """With a pre-training at another window in the first stage."""
    check(model, reference, 0.4)


def test_offsets_are_spaced_logarithmically():
    table = log_offsets(8, 8).reshape(15, 15, 2)
    np.testing.assert_allclose(table[:, 0, 0], -table[::-1, 0, 0])
    np.testing.assert_allclose(table[14, 14], np.log2(9) / 3, rtol=1e-6)
    assert (np.diff(table[0, :, 1]) > 0).all() and not log_offsets(1, 1).any()


def test_an_offset_keeps_its_place_in_a_larger_window_than_that_of_the_pre_training():
    inside = log_offsets(24, 12).reshape(47, 47, 2)[12:-12, 12:-12]
    np.testing.assert_array_equal(inside.reshape(-1, 2), log_offsets(12, 12))


def test_norms_behind_the_branches_start_at_zero():
    config = small_config("swinv2", model__depths=(1, 1))
    for block in greenjax.build(config).encoder.stages[0].blocks:
        assert not np.any(block.norm1.scale[...]) and not np.any(block.norm2.scale[...])


def test_weight_decay_leaves_the_network_of_the_position_bias_alone(model):
    flags = decayed(model.config, nnx.to_pure_dict(nnx.state(model)))
    attention = flags["encoder"]["stages"][0]["blocks"][0]["attn"]
    assert not any(jax.tree.leaves(attention["position_mlp"])) and not attention["logit_scale"]
    assert attention["qkv"]["kernel"] and attention["proj"]["kernel"]


def test_weights_are_for_every_window(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    greenjax.save_torch(model, path, "timm")
    wider = small_config("swinv2", model__window=8)
    image = pictures()
    again = greenjax.load_torch(path, wider, "timm")
    ours, theirs = model.encoder.stages[0].blocks[0].attn, again.encoder.stages[0].blocks[0].attn
    np.testing.assert_array_equal(theirs.position_mlp.fc1.kernel[...], ours.position_mlp.fc1.kernel[...])
    assert again.config.model.window == 8 and np.isfinite(again(image, np.ones((8, 8), bool)).latent).all()


def test_timm_has_to_be_told_the_windows_of_a_pre_training():
    config = small_config("swinv2", model__pretrained_windows=(3, 0))
    (fault,) = [fault for fault in LAYOUTS["timm"].faults(config) if fault.because.startswith("model.pretrained")]
    assert fault.kind == "differs" and "pretrained_window_sizes=(3, 0)" in str(fault)
    assert export_line(config).endswith("timm (model.pretrained_windows is (3, 0))")
