"""Linear probes against scikit-learn and PyTorch."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from greenjax.errors import InputError
from greenjax.evaluation import probe
from greenjax.evaluation.probe import EPSILON, choose_l2, fit_linear


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
        (dict(classes=2), r"^label 2 of image \d+: expected 0 or more, below 2 \(the number of classes\)$"),
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
