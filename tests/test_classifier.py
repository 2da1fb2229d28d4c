"""The classifier: the dense encoder of the masked image models, pooled, with a linear head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from small import small_config

import greenjax


def classifier(**overrides):
    return greenjax.build(small_config(task="finetune", model__num_classes=5, **overrides), seed=3)


def images_for(model, n=3, seed=0):
    shape = (n, model.grid.height, model.grid.width, len(model.mean))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("family", ["swin", "twins"])
def test_logits_are_the_head_of_the_mean_latent_of_the_masked_image_model(family):
    model = classifier(family=family)
    mim = greenjax.build(small_config(family=family), seed=4)
    nnx.update(mim.encoder, nnx.state(model.encoder))
    images = images_for(model)
    latent = mim(images, np.ones(mim.grid.units, bool)).latent
    expected = latent.mean(axis=1) @ model.head.kernel[...] + model.head.bias[...][None]
    np.testing.assert_allclose(model(images), expected, atol=1e-5)


def test_deterministic_without_a_key_and_random_with_one():
    model = classifier(model__drop_path=0.5)
    images = images_for(model, 16)
    np.testing.assert_array_equal(model(images), model(images))
    first, second = (model(images, jax.random.key(seed)) for seed in (0, 1))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, model(images, jax.random.key(0)))


def test_gradients_reach_every_parameter():
    model = classifier()
    model.head.kernel[...] = jnp.ones_like(model.head.kernel[...])
    graphdef, params = nnx.split(model)
    images = jnp.asarray(images_for(model))
    loss = lambda params: jnp.square(nnx.merge(graphdef, params).forward(images)[:, 0]).sum()  # noqa: E731
    gradients = jax.tree.leaves(jax.grad(loss)(params))
    assert sum(float(jnp.abs(g).max()) > 0 for g in gradients) == len(gradients)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"images: found shape \(1, 16, 32, 1\), expected"):
        classifier()(np.zeros((1, 16, 32, 1), np.float32))


def test_without_classes_it_pools_features_only():
    model = greenjax.build(small_config(task="knn"), seed=0)
    assert model.head is None
    assert model.pooled(images_for(model)).shape == (3, model.latent_dim)
    with pytest.raises(ValueError, match=r"model.num_classes is None: expected a whole number"):
        model(images_for(model))


@pytest.fixture
def probe():
    """The batch norm and the head of a linear probe, and the same in PyTorch."""
    model = greenjax.build(small_config(task="linear", model__num_classes=3), seed=0)
    model.head.kernel[...] = model.head.kernel[...] * 50
    norm = torch.nn.BatchNorm1d(model.latent_dim, eps=1e-6, momentum=0.1, affine=False)
    head = torch.nn.Linear(model.latent_dim, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(np.array(model.head.kernel[...].T)))
        head.bias.copy_(torch.tensor(np.array(model.head.bias[...])))
    return model, torch.nn.Sequential(norm, head)


def test_the_probes_batch_norm_equals_pytorchs_in_training_and_evaluation(probe):
    model, reference = probe
    for seed in range(3):
        x = np.random.default_rng(seed).normal(2, 3, size=(12, model.latent_dim)).astype(np.float32)
        y, running = model.batch_norm.of_batch(jnp.asarray(x))
        np.testing.assert_allclose(model.head(y), reference(torch.tensor(x)).detach(), atol=1e-4)
        model.batch_norm.mean[...], model.batch_norm.var[...] = running["mean"], running["var"]
    np.testing.assert_allclose(model.batch_norm.mean[...], reference[0].running_mean, rtol=1e-5)
    np.testing.assert_allclose(model.batch_norm.var[...], reference[0].running_var, rtol=1e-5)
    expected = reference.eval()(torch.tensor(x)).detach()
    np.testing.assert_allclose(model.head(model.batch_norm(jnp.asarray(x))), expected, atol=1e-4)


def test_no_gradient_of_a_probe_reaches_the_encoder(probe):
    graphdef, params = nnx.split(probe[0])
    images = jnp.asarray(images_for(probe[0], 4))
    loss = lambda params: jnp.square(nnx.merge(graphdef, params).probe(images)[0]).sum()  # noqa: E731
    for path, gradient in nnx.to_flat_state(jax.grad(loss)(params)):
        assert (path[0] == "head") == bool(jnp.abs(gradient[...]).max() > 0), path


def test_a_probe_is_a_plain_classifier_once_its_batch_norm_is_folded_in(probe, tmp_path):
    model, _ = probe
    model.batch_norm.mean[...] = jnp.linspace(-1, 1, model.latent_dim)
    model.batch_norm.var[...] = jnp.linspace(0.5, 2, model.latent_dim)
    images = images_for(model, 4)
    expected = model(images)
    greenjax.save_torch(model, tmp_path / "probe.safetensors", "timm")
    config = small_config(task="finetune", model__num_classes=3)
    plain = greenjax.load_torch(tmp_path / "probe.safetensors", config, "timm")
    np.testing.assert_allclose(plain(images), expected, atol=1e-4)
