"""ViT on visible tokens: equal to transformers' where all are visible, to a masked dense network elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from masked_dense import attention, check, convolution, dense, mlp, moved, norm, pictures
from small import small_config
from test_step import BASE, train

import greenjax
from greenjax.interop.loading import with_image_size

EPSILON = 1e-6
MODELS = {
    "token": {},
    "mean": dict(model__class_token=False, model__pool="mean", model__positions="sincos"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return moved(greenjax.build(small_config("vit", **MODELS[request.param])))


def reference(params, images, settings, grid, visible):
    """The whole grid, and the class token as one more key that is always seen."""
    seen, kernel = visible.ravel(), params["patch_embed"]["proj"]["kernel"]
    kernel = kernel.reshape(settings.patch, settings.patch, 1, -1)
    x = convolution(images, kernel, params["patch_embed"]["proj"]["bias"], stride=settings.patch, padding=0, groups=1)
    fixed = settings.positions == "sincos"
    x = x + (jax.lax.stop_gradient(params["positions"]) if fixed else params["positions"])
    x = x.reshape(2, seen.size, -1)
    if settings.class_token:
        x = jnp.concatenate([jnp.broadcast_to(params["class_token"], (2, 1, x.shape[2])), x], axis=1)
        seen = np.r_[True, seen]
    for j in range(settings.depths[0]):
        block, b, n = params["stages"][0]["blocks"][j], len(x), len(seen)
        q, k, v = jnp.split(dense(norm(x, block["norm1"], EPSILON), block["attn"]["qkv"]), 3, axis=-1)
        q, k, v = (a.reshape(b, n, settings.num_heads[0], -1) for a in (q, k, v))
        y = attention(q * q.shape[-1] ** -0.5, k, v, 0, np.tile(seen, (n, 1)))
        x = x + dense(y.reshape(b, n, -1), block["attn"]["proj"])
        x = x + mlp(norm(x, block["norm2"], EPSILON), block["mlp"])
    x = x[:, int(settings.class_token) :].reshape(2, *visible.shape, -1)
    return norm(x, params["norm"], EPSILON), [x]


def test_visible_tokens_and_gradients_equal_the_masked_dense_network(model):
    check(model, reference, 0.4)


def tensor(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


def test_all_visible_equals_transformers(tmp_path):
    """A classifier by its class token; and the mean of its tokens, normed after that."""
    settings = dict(task="finetune", model__num_classes=5, image_size=(16, 24))
    settings |= dict(model__in_channels=3, data__mean=(0.5,) * 3, data__std=(0.2,) * 3)
    model = moved(greenjax.build(small_config("vit", **settings)))
    greenjax.save_torch(model, tmp_path / "hf", layout="hf")
    theirs, info = transformers.ViTForImageClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    images = np.random.default_rng(1).normal(size=(2, 16, 24, 3)).astype(np.float32)
    with torch.no_grad():
        logits = theirs.eval()(tensor(images)).logits
        tokens = theirs.vit(tensor(images), output_hidden_states=True).hidden_states[-1][:, 1:]
        pooled = theirs.vit.layernorm(tokens.mean(dim=1))
    np.testing.assert_allclose(model(images), logits, atol=1e-5)
    np.testing.assert_allclose(greenjax.features(model, images)[0].reshape(tokens.shape), tokens, atol=1e-5)
    greenjax.save_torch(model, tmp_path / "timm.pth", layout="timm")
    mean = greenjax.load_torch(
        tmp_path / "timm.pth", small_config("vit", **settings, model__pool="mean"), "timm", new_head=True
    )
    np.testing.assert_allclose(mean.pooled(images), pooled, atol=1e-5)


@pytest.mark.parametrize("row_first", [False, True])
def test_the_loss_is_that_of_vit_mae(tmp_path, row_first):
    """With one mask an image, of the pixels and of normalised ones; some versions' decoder has the row first."""
    config = small_config("vit", model__positions="sincos", decoder__depth=2, decoder__norm_pixels=row_first)
    model = moved(greenjax.build(config))
    greenjax.save_torch(model, tmp_path / "ours", layout="hf")
    theirs, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    if row_first:
        positions = theirs.decoder.decoder_pos_embed
        positions.data = positions.data.roll(config.decoder.dim // 2, 2)
    theirs.save_pretrained(tmp_path / "theirs")
    model = greenjax.load_torch(tmp_path / "theirs", config, "hf")
    images, rng = pictures(3), np.random.default_rng(4)
    visible = np.stack([rng.permutation(64) < 16 for _ in images]).reshape(3, 8, 8)
    with torch.no_grad():
        expected = theirs.eval()(tensor(images), noise=torch.tensor(~visible.reshape(3, 64)).float())
    found = model(images, visible)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(found.prediction, expected.logits, atol=1e-5 * abs(expected.logits).max())
    assert found.latent.shape == (3, 16, 8)


def test_simmim_is_that_of_transformers(tmp_path):
    config = small_config("vit", method="simmim")
    model = moved(greenjax.build(config))
    greenjax.save_torch(model, tmp_path / "hf", layout="hf")
    theirs, info = transformers.ViTForMaskedImageModeling.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    images, visible = pictures(), np.random.default_rng(3).random((8, 8)) < 0.5
    removed = torch.tensor(np.tile(~visible.ravel(), (2, 1)))
    with torch.no_grad():
        expected = theirs.eval()(tensor(images), bool_masked_pos=removed)
    found = model(images, visible)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    pixels = expected.reconstruction.numpy().reshape(2, 8, 4, 8, 4).swapaxes(2, 3)
    np.testing.assert_allclose(found.prediction, pixels.reshape(2, 64, 16), atol=1e-5 * abs(pixels).max())


def test_positions_are_resized_or_stay():
    """For other images bicubic, with the class token's left alone; fixed ones are never trained, learnt ones are."""
    trained = {}
    for positions in ("learned", "sincos"):
        config = small_config("vit", **BASE | dict(model__depths=(1,)), model__positions=positions, mesh__data=1)
        before = greenjax.build(config, config.seed).encoder.positions[...]
        after = train(config, 2)[1].params["encoder"]["positions"]
        trained[positions] = bool(np.any(before != after))
    assert trained == {"learned": True, "sincos": False}

    model = moved(greenjax.build(small_config("vit")))
    larger, report = with_image_size(model, (48, 24))
    grid = torch.tensor(np.asarray(model.encoder.positions)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(grid, (12, 6), mode="bicubic", antialias=True)
    np.testing.assert_allclose(larger.encoder.positions, expected[0].permute(1, 2, 0), atol=1e-5)
    np.testing.assert_array_equal(larger.encoder.class_token, model.encoder.class_token)
    assert "positions resized (bicubic) from 8 x 8 to 12 x 6 tokens" in report.lines()
