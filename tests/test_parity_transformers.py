"""The dense network is transformers' Swin; the baseline is its SimMIM."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from small import small_config
from transformers_swin import copy_encoder, randomise

import greenjax

transformers.logging.set_verbosity_error()


def pair(depths, window, size, embed_dim=12, **overrides):
    """A greenjax model and the transformers configuration of the same encoder."""
    heads = (2, 4, 8, 16)[: len(depths)]
    shape = dict(depths=depths, num_heads=heads, window=window, embed_dim=embed_dim, patch=4, in_channels=3)
    shape = {f"model__{key}": value for key, value in shape.items()}
    colours = dict(data__mean=(0.0,) * 3, data__std=(1.0,) * 3)
    model = greenjax.build(small_config(image_size=size, **shape, **colours, **overrides), seed=1)
    reference = transformers.SwinConfig(
        image_size=size,
        patch_size=4,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=heads,
        window_size=window,
        drop_path_rate=0.0,
        encoder_stride=4 * 2 ** (len(depths) - 1),
    )
    return model, reference


@pytest.mark.parametrize(
    ("depths", "window", "size"),
    [
        ((1,), 4, 32),
        ((2, 2), 7, 56),  # shifted windows, then a grid as large as the window
        ((2, 2, 2), 4, 128),
        ((2, 2, 6, 2), 7, 224),
    ],
    ids=str,
)
def test_dense_swin_equals_transformers(depths, window, size):
    model, config = pair(depths, window, size)
    swin = transformers.SwinModel(config, add_pooling_layer=False).eval()
    randomise(swin, seed=2)
    copy_encoder(model.encoder, swin)
    images = np.random.default_rng(3).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = swin(torch.tensor(images).permute(0, 3, 1, 2), output_hidden_states=True)

    side = model.grid.units[0]
    out = model(jnp.asarray(images), np.ones((side, side), bool))
    np.testing.assert_allclose(out.latent, expected.last_hidden_state.numpy(), atol=1e-4)

    before_merging = [h.permute(0, 2, 3, 1).numpy() for h in reshaped_stage_outputs(swin, images)]
    for feature, reference in zip(greenjax.features(model, images), before_merging, strict=True):
        np.testing.assert_allclose(feature, reference, atol=1e-4)


def reshaped_stage_outputs(swin, images):
    """transformers' feature maps at the end of each stage, before merging."""
    with torch.no_grad():
        embedded, dimensions = swin.embeddings(torch.tensor(images).permute(0, 3, 1, 2))
        outputs = swin.encoder(
            embedded, dimensions, output_hidden_states=True, output_hidden_states_before_downsampling=True
        )
    return outputs.reshaped_hidden_states[1:]


def test_simmim_loss_equals_transformers():
    model, config = pair((2, 2), 4, 64, method="simmim", mask__ratio=0.6)
    reference = transformers.SwinForMaskedImageModeling(config).eval()
    randomise(reference, seed=4)
    copy_encoder(model.encoder, reference.swin)
    model.mask_token[...] = jnp.asarray(reference.swin.embeddings.mask_token.detach().numpy()[0, 0])
    # Pixel shuffle takes channels as (channel, row, column); ours are (row, column, channel).
    unit = model.grid.unit
    kernel = reference.decoder[0].weight.detach().numpy()[:, :, 0, 0].reshape(3, unit, unit, -1)
    model.pixel_head.kernel[...] = jnp.asarray(kernel.transpose(3, 1, 2, 0).reshape(-1, unit * unit * 3))
    bias = reference.decoder[0].bias.detach().numpy().reshape(3, unit, unit)
    model.pixel_head.bias[...] = jnp.asarray(bias.transpose(1, 2, 0).ravel())

    rng = np.random.default_rng(5)
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    visible = np.stack([rng.permutation(64).reshape(8, 8) < 25 for _ in range(2)])  # one mask an image
    removed = torch.tensor(np.repeat(np.repeat(~visible, 2, 1), 2, 2).reshape(2, -1))  # transformers masks patches
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2), bool_masked_pos=removed)

    out = model(jnp.asarray(images), visible)
    np.testing.assert_allclose(out.loss, expected.loss.item(), rtol=1e-5)
    pixels = expected.reconstruction.permute(0, 2, 3, 1).reshape(2, 8, unit, 8, unit, 3)
    pixels = pixels.permute(0, 1, 3, 2, 4, 5).reshape(2, 64, -1)
    np.testing.assert_allclose(out.prediction, pixels.numpy(), atol=1e-4)
