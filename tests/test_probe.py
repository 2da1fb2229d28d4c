"""Linear probes against scikit-learn and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from greenjax.errors import InputError
from greenjax.evaluation import probe
from greenjax.evaluation.probe import EPSILON, LinearProbe, choose_l2, fit_linear


def example(n=150, classes=3, channels=5, seed=0, dtype=np.float32):
    """Classes that overlap; channels of very different scale and offset."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    features = rng.normal(size=(classes, channels))[labels] + rng.normal(size=(n, channels))
    return (features * 10.0 ** np.arange(-2, channels - 2) + 5).astype(dtype), labels


def standardised(features):
    return (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + EPSILON)


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_fit_equals_scikit_learn(classes, l2, monkeypatch):
    monkeypatch.setattr(probe, "_CHUNK", 64)  # three chunks, the last with padding
    features, labels = example(classes=classes, dtype=np.float64)
    with jax.enable_x64(True):
        fit = fit_linear(features, labels, classes, l2=l2, tolerance=1e-9)
    x = standardised(features)
    reference = LogisticRegression(C=1 / (len(x) * l2), tol=1e-9, max_iter=10_000)
    if classes == 2:  # scikit-learn's binary case has one row of weights: half the penalty on the same difference
        reference.set_params(C=2 / (len(x) * l2))
        coefficients = (fit.kernel[:, 1] - fit.kernel[:, 0])[None]
    else:
        coefficients = fit.kernel.T
    reference.fit(x, labels)
    assert fit.gradient <= 1e-9
    np.testing.assert_allclose(coefficients, reference.coef_, atol=1e-4)
    np.testing.assert_allclose(softmax(fit.logits(features)), reference.predict_proba(x), atol=1e-4)


def test_float32_comes_as_near_as_it_can():
    features, labels = example()
    fit = fit_linear(features, labels, 3, l2=1e-3, tolerance=0.0)
    reference = LogisticRegression(C=1 / (len(features) * 1e-3), tol=1e-9, max_iter=10_000)
    reference.fit(standardised(features.astype(np.float64)), labels)
    assert fit.iterations < 1000
    np.testing.assert_allclose(fit.kernel.T, reference.coef_, atol=1e-2)
    np.testing.assert_allclose(
        softmax(fit.logits(features)), reference.predict_proba(standardised(features)), atol=1e-3
    )


def test_the_same_arguments_give_the_same_bits():
    first, second = (fit_linear(*example(), 3, l2=0.01) for _ in range(2))
    np.testing.assert_array_equal(first.kernel, second.kernel)
    np.testing.assert_array_equal(first.bias, second.bias)


def test_a_class_without_images_and_a_constant_channel_do_no_harm():
    features, labels = example()
    features[:, 0] = 3.7
    fit = fit_linear(features, labels, 5, l2=0.01)
    assert np.isfinite(fit.logits(features)).all()
    assert set(fit.logits(features).argmax(axis=1)) <= {0, 1, 2}


def test_the_chosen_l2_has_the_least_held_out_loss():
    features, labels = example(n=100)
    grid, losses = (1e-4, 1e-2, 1.0), {}
    order = np.random.default_rng(7).permutation(100)
    for l2 in grid:
        fit = fit_linear(features[order[10:]], labels[order[10:]], 3, l2=l2)
        shares = softmax(fit.logits(features[order[:10]]).astype(np.float64))
        losses[l2] = -np.log(shares[range(10), labels[order[:10]]]).mean()
    assert choose_l2(features, labels, 3, grid=grid, seed=7) == min(losses, key=losses.get)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(l2=0.0), r"^l2 is 0.0: expected a number above 0$"),
        (dict(classes=1), r"^classes is 1: expected at least 2$"),
        (dict(classes=2), r"^label of image \d+ is 2: expected 0 to 1, for 2 classes$"),
        (dict(features=np.full((150, 5), np.inf, np.float32)), r"^features of image 0 are not finite"),
        (dict(features=np.zeros((0, 5), np.float32), labels=np.zeros(0, int)), r"^features are of 0 images"),
    ],
)
def test_wrong_input_is_refused(change, message):
    features, labels = example()
    with pytest.raises(InputError, match=message):
        fit_linear(**dict(features=features, labels=labels, classes=3, l2=0.1) | change)


def test_choosing_l2_wants_ten_images_and_a_grid():
    features, labels = example(n=9)
    with pytest.raises(InputError, match=r"^features are of 9 images: expected at least 10$"):
        choose_l2(features, labels, 3)
    with pytest.raises(InputError, match=r"^grid is empty"):
        choose_l2(*example(), 3, grid=())


def torch_probe(params):
    norm = torch.nn.BatchNorm1d(5, eps=1e-6, momentum=0.1, affine=False)
    head = torch.nn.Linear(5, 3)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.array(params["kernel"].T)))
        head.bias.copy_(torch.from_numpy(np.array(params["bias"])))
    return torch.nn.Sequential(norm, head)


def test_the_module_equals_pytorch_in_training_and_evaluation():
    module = LinearProbe(5, 3)
    params, stats = module.init(jax.random.key(0))
    params["kernel"] = params["kernel"] * 50
    reference = torch_probe(params)
    for seed in range(3):
        x = jnp.asarray(example(n=12, seed=seed)[0])
        logits, stats = jax.jit(module.apply_train)(params, stats, x)
        np.testing.assert_allclose(logits, reference(torch.from_numpy(np.array(x))).detach(), atol=1e-4)
    np.testing.assert_allclose(stats.mean, reference[0].running_mean, rtol=1e-5)
    np.testing.assert_allclose(stats.var, reference[0].running_var, rtol=1e-5)
    reference.eval()
    np.testing.assert_allclose(
        module.apply_eval(params, stats, x), reference(torch.from_numpy(np.array(x))).detach(), atol=1e-4
    )


def test_the_gradients_of_the_module_equal_pytorchs():
    module = LinearProbe(5, 3)
    params, stats = module.init(jax.random.key(0))
    x, labels = example(n=12)

    def loss(params, x):
        shares = jax.nn.log_softmax(module.apply_train(params, stats, x)[0])
        return -shares[jnp.arange(12), labels].mean()

    by_params, by_x = jax.grad(loss, argnums=(0, 1))(params, jnp.asarray(x))
    reference, given = torch_probe(params), torch.from_numpy(x).requires_grad_()
    torch.nn.functional.cross_entropy(reference(given), torch.from_numpy(labels)).backward()
    np.testing.assert_allclose(by_params["kernel"].T, reference[1].weight.grad, atol=1e-5)
    np.testing.assert_allclose(by_params["bias"], reference[1].bias.grad, atol=1e-5)
    np.testing.assert_allclose(by_x, given.grad, rtol=1e-3, atol=1e-5)


def test_half_precision_features_are_normalised_in_full():
    module = LinearProbe(5, 3)
    params, stats = module.init(jax.random.key(0))
    x = jnp.asarray(example(n=12)[0], jnp.bfloat16)
    logits, after = module.apply_train(params, stats, x)
    assert logits.dtype == after.mean.dtype == after.var.dtype == jnp.float32
    np.testing.assert_array_equal(logits, module.apply_train(params, stats, x.astype(jnp.float32))[0])


def test_one_image_has_no_variance():
    module = LinearProbe(5, 3)
    with pytest.raises(InputError, match=r"^features are of 1 image: expected at least 2"):
        module.apply_train(*module.init(jax.random.key(0)), jnp.zeros((1, 5)))
