"""Hiera on visible tokens: equal to transformers' where all are visible, to a masked dense network elsewhere."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from flax import nnx
from masked_dense import attention, check, convolution, dense, mlp, moved, norm, pictures, seen_at
from small import small_config

import greenjax
from greenjax.interop.loading import blank_model, with_image_size
from greenjax.interop.weights import Report, adapt, flat_weights
from greenjax.runtime.checkpoint import flatten_tree

EPSILON = 1e-6


@pytest.fixture(scope="module")
def model():
    return moved(greenjax.build(small_config("hiera", image_size=48)))


def test_all_visible_equals_transformers(tmp_path, model):
    greenjax.save_torch(model, tmp_path / "hf", layout="hf")
    theirs, info = transformers.HieraModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    images = pictures(size=48)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(images).permute(0, 3, 1, 2))
    last = greenjax.features(model, images)[-1]
    np.testing.assert_allclose(last.reshape(expected.last_hidden_state.shape), expected.last_hidden_state, atol=1e-5)
    np.testing.assert_allclose(model.pooled(images), expected.pooler_output, atol=1e-5)


def tensor(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("pools", "side"), [(2, 1), (1, 2)])
def test_loss_and_gradients_are_those_of_hiera_for_pretraining(tmp_path, pools, side):
    """With one mask an image; published models do not pool before the last stage, and predict four patches a unit."""
    settings = dict(image_size=48, model__query_pools=pools, decoder__depth=2, mask__ratio=0.6)
    settings |= dict(decoder__fusion=True, decoder__positions="learned")
    settings |= dict(model__in_channels=3, data__mean=(0.5,) * 3, data__std=(0.2,) * 3)
    config = small_config("hiera", **settings)
    model = moved(greenjax.build(config))
    assert not greenjax.save_torch(model, tmp_path / "hf", layout="hf")
    theirs, info = transformers.HieraForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    rng, units = np.random.default_rng(4), model.grid.units
    images = rng.normal(size=(3, 48, 48, 3)).astype(np.float32)
    shown = int(math.prod(units) * (1 - config.mask.ratio))
    visible = np.stack([rng.permutation(math.prod(units)) < shown for _ in images]).reshape(3, *units)
    expected = theirs.eval()(tensor(images), noise=torch.tensor(~visible.reshape(3, -1)).float())
    expected.loss.backward()

    graphdef, state = nnx.split(model)

    def loss(state):
        out = nnx.merge(graphdef, state)(images, visible)
        return out.loss, out

    (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(state)
    np.testing.assert_allclose(found.loss, expected.loss.item(), rtol=1e-5)
    patches = rearrange(expected.logits.detach().numpy(), "b n (c p) -> b n (p c)", c=3)
    np.testing.assert_allclose(found.prediction, patches, atol=1e-5 * abs(patches).max())
    assert found.latent.shape == (3, shown * side**2, 32)

    for parameter in theirs.parameters():  # gradients, as a file of weights
        parameter.data = parameter.grad
    theirs.save_pretrained(tmp_path / "gradients")
    wanted = flat_weights(greenjax.load_torch(tmp_path / "gradients", config, "hf"))
    largest = max(abs(value).max() for value in wanted.values())
    for name, value in flatten_tree(nnx.to_pure_dict(gradients)).items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-5 * largest, err_msg=name)


def test_the_backends_of_the_stem_are_equal(model):
    images, visible = pictures(size=48), np.random.default_rng(3).random(model.grid.units) < 0.4
    state = nnx.state(model)

    def gradients(backend):
        graphdef, _ = nnx.split(greenjax.build(small_config("hiera", image_size=48, model__sparse_conv=backend)))
        return jax.jit(jax.grad(lambda state: nnx.merge(graphdef, state)(images, visible).loss))(state)

    for a, b in zip(*(jax.tree.leaves(gradients(backend)) for backend in ("masked", "native")), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def four_in_one(grid):
    """[b, h, w, c] -> [b, h / 2, w / 2, 4, c]."""
    b, h, w, c = grid.shape
    return grid.reshape(b, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4, c)


def pooled_attention(x, seen, params, heads, side, pools):
    """Inside mask units of side x side tokens, or global (0); the queries are maxima of four tokens where it pools."""
    b, h, w, _ = x.shape
    q, k, v = jnp.split(dense(x, params["qkv"]), 3, axis=-1)
    row, column = np.indices((h, w)).reshape(2, -1)
    of_query = row, column
    if pools:
        q = four_in_one(q).max(axis=3)
        of_query = (2 * axis for axis in np.indices(q.shape[1:3]).reshape(2, -1))
    same = np.ones((q.shape[1] * q.shape[2], h * w), bool)
    if side:
        for query, token in zip(of_query, (row, column)):
            same &= query[:, None] // side == token // side
    q, k, v = (a.reshape(b, -1, heads, a.shape[-1] // heads) for a in (q, k, v))
    y = attention(q * q.shape[-1] ** -0.5, k, v, 0, same & seen.ravel())
    shape = (h // 2, w // 2) if pools else (h, w)
    return dense(y.reshape(b, *shape, -1), params["proj"])


def reference(params, images, settings, grid, visible):
    stem = params["patch_embed"]
    masked = images * seen_at(visible, grid.unit)[..., None]
    x = convolution(masked, stem["proj"]["kernel"], stem["proj"]["bias"], stride=settings.patch, groups=1)
    x = x + stem["positions"].reshape(1, *x.shape[1:])
    outputs, stages = [], len(settings.depths)
    for i, depth in enumerate(settings.depths):
        for j in range(depth):
            block, pools = params["stages"][i]["blocks"][j], bool(i) and j == 0
            before = i - pools
            local = before < stages - 2
            normed = norm(x, block["norm1"], EPSILON)
            if pools:
                x = four_in_one(dense(normed, block["proj"])).max(axis=3)
            side, seen = grid.side(before) if local else 0, seen_at(visible, grid.side(before))
            x = x + pooled_attention(normed, seen, block["attn"], settings.num_heads[i], side, pools)
            x = x + mlp(norm(x, block["norm2"], EPSILON), block["mlp"])
        outputs.append(x)
    return norm(x, params["norm"], EPSILON), outputs


def test_visible_tokens_and_gradients_equal_the_masked_dense_network(model):
    check(model, reference, 0.4)


def test_positions_are_resized_as_pytorch_does(model):
    """Between any two grids: 24 x 24 tokens, 32 x 16, 16 x 16."""
    wide, small = (small_config("hiera", image_size=size) for size in ((64, 32), 32))
    report, name = Report(), "encoder/patch_embed/positions"
    weights = flat_weights(model)
    found = adapt(weights, blank_model(wide), report)
    grid = torch.tensor(weights[name]).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(grid, (32, 16), mode="bicubic", antialias=True)
    np.testing.assert_allclose(found[name], expected[0].permute(1, 2, 0), atol=1e-5)
    assert "positions resized (bicubic) from 24 x 24 to 32 x 16 tokens" in str(report.lines())
    assert adapt(found, blank_model(small), Report())[name].shape == (16, 16, 8)
    with pytest.raises(ValueError, match=r"the grid of tokens is 24 x 24 in the weights, 32 x 16 here"):
        adapt(weights, blank_model(wide), Report(), "none")


def test_positions_of_a_file_are_of_this_grid_or_a_square_one(tmp_path, model):
    wide, file = small_config("hiera", image_size=(64, 32)), tmp_path / "weights.pth"
    greenjax.save_torch(model, file, layout="timm")
    widened = greenjax.load_torch(file, wide, "timm")
    assert widened.encoder.patch_embed.positions.shape == (32, 16, 8)
    greenjax.save_torch(widened, file, layout="timm")
    again = greenjax.load_torch(file, wide, "timm")
    np.testing.assert_array_equal(again.encoder.patch_embed.positions, widened.encoder.patch_embed.positions)
    with pytest.raises(ValueError, match=r"the file has 512 positions, of a grid that is not square, and .*\(48, 48\)"):
        greenjax.load_torch(file, small_config("hiera", image_size=48), "timm")


def test_positions_of_another_grid_with_as_many_tokens_are_not_taken_for_ones_of_this(tmp_path):
    """16 x 16 and 32 x 8: a file of greenjax says which, others are refused."""
    square, wide = small_config("hiera"), small_config("hiera", image_size=(64, 16))
    model = moved(greenjax.build(square))
    greenjax.save_torch(model, tmp_path / "told.safetensors", layout="timm")
    resized, _ = with_image_size(model, (64, 16))
    found = greenjax.load_torch(tmp_path / "told.safetensors", wide, "timm")
    np.testing.assert_array_equal(found.encoder.patch_embed.positions, resized.encoder.patch_embed.positions)
    greenjax.save_torch(model, tmp_path / "silent.pth", layout="timm")
    with pytest.raises(ValueError, match=r"256 positions, .* of 16 x 16 or of 32 x 8 tokens: expected another image_s"):
        greenjax.load_torch(tmp_path / "silent.pth", wide, "timm")


def test_simmim_predicts_every_patch_where_a_unit_has_four():
    model = moved(greenjax.build(small_config("hiera", method="simmim", model__query_pools=1)))
    visible, images = np.random.default_rng(3).random(model.grid.units) < 0.5, pictures()
    out = model(images, visible)
    patches = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=model.grid.unit // 2, q=model.grid.unit // 2)
    masked = ~seen_at(visible, 2).ravel()
    np.testing.assert_allclose(out.loss, np.abs(out.prediction - patches)[:, masked].mean(), rtol=1e-5)
    last = greenjax.features(model, images)[-1]
    assert last.shape == (2, 8, 8, 32) and out.latent.shape == (2, 64, 32)


def test_simmim_does_not_see_masked_pixels():
    model = moved(greenjax.build(small_config("hiera", method="simmim")))
    visible = np.random.default_rng(3).random(model.grid.units) < 0.5
    images = pictures()
    noise = np.where(seen_at(visible, model.grid.unit)[..., None], 0, pictures()[::-1]).astype(np.float32)
    np.testing.assert_array_equal(model(images, visible).prediction, model(images + noise, visible).prediction)
