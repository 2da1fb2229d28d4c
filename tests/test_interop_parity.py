"""Exported weights compute the same in PyTorch: in transformers, and in a reference of the official Swin."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from small import small_config
from test_interop_layouts import KINDS, random_model
from torch_swin import TorchSwin

import greenjax
from greenjax.backbones.registry import FAMILIES
from greenjax.interop.weights import flat_weights, put_weights

transformers.logging.set_verbosity_error()


def tamed(model, seed=5):
    """Random weights of the size that training gives them, so that float32 has something to compare."""
    rng = np.random.default_rng(seed)

    def draw(name, value):
        scale = value.shape[0] ** -0.5 if name.endswith("kernel") else 0.3
        return (rng.normal(size=value.shape) * scale + name.endswith("scale")).astype(np.float32)

    put_weights(model, {name: draw(name, value) for name, value in flat_weights(model).items()})
    return model


def narrow_swin(size, window, depths, kind, embed_dim=8):
    heads = tuple(2**stage for stage in range(len(depths)))
    shape = dict(depths=depths, num_heads=heads, window=window, embed_dim=embed_dim, patch=4, in_channels=3)
    shape = {f"model__{key}": value for key, value in shape.items()}
    colours = dict(data__mean=(0.0,) * 3, data__std=(1.0,) * 3)
    return tamed(greenjax.build(small_config(image_size=size, **shape, **colours, **KINDS[kind])))


def opened(cls, folder):
    """The folder's model; nothing may be missing, unexpected, of another shape or wrong."""
    model, loading = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval()


def some_images(size, n=2):
    return np.random.default_rng(3).normal(size=(n, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "window", "depths"),
    [
        (56, 7, (1,)),
        (56, 7, (2, 2)),
        (224, 7, (2, 2, 2, 2)),
        (224, 14, (2, 2, 2)),
    ],
    ids=str,
)
def test_transformers_has_the_same_features_and_logits(size, window, depths, tmp_path):
    model, images = narrow_swin(size, window, depths, "classifier"), some_images(size, 1)
    assert greenjax.save_torch(model, tmp_path / "classifier", "hf") == []
    classifier = opened(transformers.SwinForImageClassification, tmp_path / "classifier")
    greenjax.save_torch(model, tmp_path / "encoder", "hf", encoder_only=True)
    encoder = opened(transformers.SwinModel, tmp_path / "encoder")
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits, features = classifier(pixels).logits, encoder(pixels).last_hidden_state
    np.testing.assert_allclose(model(images), logits.numpy(), atol=1e-4)
    latent, _ = model.dense(jnp.asarray(images))
    np.testing.assert_allclose(latent, features.numpy(), atol=1e-4)


def test_transformers_weights_come_in(tmp_path):
    config = transformers.SwinConfig(
        image_size=56, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=7, num_labels=5
    )
    torch.manual_seed(0)
    reference = transformers.SwinForImageClassification(config).eval()
    reference.save_pretrained(tmp_path)
    model = greenjax.load_torch(tmp_path, narrow_swin(56, 7, (2, 2), "classifier").config, "hf")
    images = some_images(56)
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).logits
    np.testing.assert_allclose(model(images), expected.numpy(), atol=1e-5)


def test_simmim_in_transformers_has_the_same_loss(tmp_path):
    model = narrow_swin(64, 4, (2, 2), "simmim")
    greenjax.save_torch(model, tmp_path, "hf")
    reference = opened(transformers.SwinForMaskedImageModeling, tmp_path)
    rng, images = np.random.default_rng(5), some_images(64)
    visible = np.stack([rng.permutation(64).reshape(8, 8) < 25 for _ in range(2)])
    removed = torch.tensor(np.repeat(np.repeat(~visible, 2, 1), 2, 2).reshape(2, -1))  # transformers masks patches
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2), bool_masked_pos=removed)
    np.testing.assert_allclose(model(images, visible).loss, expected.loss.item(), rtol=1e-5)


@pytest.mark.parametrize(("size", "window", "depths"), [(224, 14, (2, 2, 2, 2)), (56, 7, (2, 3))], ids=str)
def test_the_official_swin_loads_strictly_and_computes_the_same(size, window, depths, tmp_path):
    """Window 14 at 224 px has a last grid of 7: the window shrinks, and transformers cannot run it."""
    model, images = narrow_swin(size, window, depths, "classifier"), some_images(size, 1)
    path = tmp_path / "swin.pth"
    greenjax.save_torch(model, path, "swin")
    reference = TorchSwin((size, size), 8, depths, model.config.model.num_heads, window, classes=5).eval()
    reference.load_state_dict(torch.load(path, weights_only=True), strict=True)
    with torch.no_grad():
        logits = reference.logits(torch.tensor(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(model(images), logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("layout", ["hf", "torchvision", "mmdet"])
def test_a_grid_smaller_than_the_window_is_refused_where_the_library_cannot_have_it(layout, tmp_path):
    model = narrow_swin(56, 14, (2, 2), "green")
    with pytest.raises(ValueError, match=r"stage 2 has a grid of 7 x 7 tokens, smaller than the window of 14"):
        greenjax.save_torch(model, tmp_path / "weights.safetensors", layout)
    assert not list(tmp_path.iterdir())


def test_what_a_library_cannot_say_is_refused(tmp_path):
    grey = random_model("swin", "green", model__in_channels=1, data__mean=(0.5,), data__std=(0.2,))
    with pytest.raises(ValueError, match=r"layout 'torchvision': model.in_channels is 1: expected 3"):
        greenjax.save_torch(grey, tmp_path / "weights.pth", "torchvision")
    model = random_model("swin", "green", model__mlp_ratio=(4, 2))
    with pytest.raises(ValueError, match=r"model.mlp_ratio is \(4.0, 2.0\): expected one ratio for all stages"):
        greenjax.save_torch(model, tmp_path / "folder", "hf")


@pytest.mark.parametrize("family", ["swin", "swinv2", "hiera"])
def test_a_ratio_that_transformers_rounds_otherwise_is_refused(family):
    """Of 8 channels: 2.45 has 20 hidden channels here, and 19 there."""
    layout = FAMILIES[family].layouts["hf"]
    with pytest.raises(
        ValueError, match=r"model.mlp_ratio is 2.45: expected one ratio .*, and no hidden channels rounded up"
    ):
        layout.folder(small_config(family, model__mlp_ratio=2.45), set())
    assert layout.folder(small_config(family, model__mlp_ratio=2.51), set())["mlp_ratio"] == 2.51
