"""The classifier: the dense encoder of the masked image models, pooled, with a linear head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
