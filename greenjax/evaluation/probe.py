"""A linear probe on frozen features: a logistic regression that is fitted to convergence.

Features are standardised without learnt scale or shift. Source: He et al., "Masked Autoencoders Are Scalable Vision
Learners" (arXiv 2111.06377), appendix A.1, which puts a batch norm without affine before the linear layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from greenjax.errors import InputError
from greenjax.evaluation.checks import check_features, pad_rows
from greenjax.evaluation.outputs import Features

EPSILON = 1e-6  # added to variances; MAE's
LEAST = 10  # images: a tenth of them chooses l2
L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

_CHUNK = 1 << 14  # images whose logits exist at a time
_STALLED = 5  # iterations in a row without a lower objective: rounding hides any progress


@dataclass(frozen=True)
class LinearFit:
    """A fitted classifier: logits = (features - mean) * scale @ kernel + bias, and the state of the fit at its end."""

    mean: Float[np.ndarray, " c"]
    scale: Float[np.ndarray, " c"]
    kernel: Float[np.ndarray, "c classes"]
    bias: Float[np.ndarray, " classes"]
    l2: float
    objective: float
    gradient: float  # the largest entry of the objective's gradient, absolute
    iterations: int

    def logits(self, features: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n classes"]:
        """On the host, in the features' precision."""
        kernel = self.scale[:, None] * self.kernel
        return features @ kernel + (self.bias - self.mean @ kernel)[None]


def fit_linear(
    features: Float[np.ndarray, "n c"],
    labels: Integer[np.ndarray, " n"],
    classes: int,
    *,
    l2: float | int,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> LinearFit:
    """Multinomial logistic regression on standardised features, to convergence by L-BFGS on one device.

    Minimises mean cross-entropy + l2 / 2 * |kernel|^2; the bias is free. scikit-learn's
    LogisticRegression(C=1 / (n * l2)) minimises the same on features standardised by (x - mean) / sqrt(var + EPSILON);
    with two classes it has one row of weights in place of two, and C = 2 / (n * l2).
    Starts from zero, so the result is a function of the arguments. Ends where no entry of the gradient is above
    `tolerance`, or where rounding hides progress. The device holds all features, and the logits of 16,384 images at a
    time. Raises InputError for labels that are no class, features that are not finite, and an l2 not above 0.
    """
    check_features(features, labels, classes)
    if not l2 > 0:
        raise InputError(f"l2 is {l2}: expected a number above 0")
    mean, scale = _standardisation(features)
    rows = -(-len(features) // -(-len(features) // _CHUNK))  # equal chunks need little padding
    length = -(-len(features) // rows) * rows
    chunks = _Chunks(
        pad_rows(features, length).reshape(-1, rows, features.shape[1]),
        pad_rows(labels.astype(np.int32), length).reshape(-1, rows),
        pad_rows(np.full(len(labels), 1 / len(labels), features.dtype), length).reshape(-1, rows),
    )
    numbers = (np.asarray(l2, features.dtype), np.asarray(tolerance, features.dtype), np.int32(max_iterations))
    fitted = jax.device_get(_fit(*jax.device_put((chunks, mean, scale, *numbers)), classes=classes))
    head, objective, gradient, iterations = fitted
    return LinearFit(
        mean, scale, head.kernel, head.bias, float(l2), objective.item(), gradient.item(), iterations.item()
    )


def choose_l2(
    features: Float[np.ndarray, "n c"],
    labels: Integer[np.ndarray, " n"],
    classes: int,
    *,
    grid: Sequence[float] = L2_GRID,
    seed: int = 0,
) -> float:
    """The l2 of `grid` whose fit to nine tenths of the images has the least cross-entropy on the last tenth.

    `seed` draws the tenth; among equally good fits the largest l2 wins. Raises InputError for fewer than LEAST images.
    """
    check_features(features, labels, classes, least=LEAST)
    if not grid:
        raise InputError("grid is empty: expected at least one l2")
    order = np.random.default_rng(seed).permutation(len(features))
    held_out, rest = np.split(order, [len(order) // 10])

    def loss(l2: float) -> float:
        logits = fit_linear(features[rest], labels[rest], classes, l2=l2).logits(features[held_out])
        by_image = optax.softmax_cross_entropy_with_integer_labels(logits, labels[held_out])
        return float(np.asarray(by_image).mean(dtype=np.float64))

    return min(sorted(grid, reverse=True), key=loss)


def linear_scores(train: Features, queries: Features, classes: int, *, seed: int = 0) -> Float[np.ndarray, "n classes"]:
    """The queries' logits by a fit to `train`, its l2 chosen on a tenth of `train` that is drawn by `seed`."""
    return fit_linear(*train, classes, l2=choose_l2(*train, classes, seed=seed)).logits(queries.values)


def _standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / deviation of every channel, summed in float64."""
    parts = [features[first : first + _CHUNK] for first in range(0, len(features), _CHUNK)]
    mean = np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0) / len(features)
    variance = np.sum([np.square(part - mean[None]).sum(axis=0) for part in parts], axis=0) / len(features)
    return mean.astype(features.dtype), (1 / np.sqrt(variance + EPSILON)).astype(features.dtype)


class _Chunks(NamedTuple):
    """Training images, [chunks, rows, ...]."""

    features: Any
    labels: Any
    weight: Any  # 1 / images; 0 for padding


class _Head(NamedTuple):
    kernel: Array
    bias: Array


@partial(jax.jit, static_argnames="classes")
def _fit(
    chunks: _Chunks, mean: Array, scale: Array, l2: Array, tolerance: Array, max_iterations: Array, *, classes: int
) -> tuple[_Head, Array, Array, Array]:
    """The head, its objective, the largest entry of its gradient, and the number of iterations."""

    def add(total: Array, chunk: _Chunks, head: _Head) -> tuple[Array, None]:
        x = (chunk.features - mean[None]) * scale[None]
        losses = optax.softmax_cross_entropy_with_integer_labels(_affine(head, x), chunk.labels)
        return total + (chunk.weight * losses).sum(), None

    def objective(head: _Head) -> Array:
        # Checkpointed: the gradient of a chunk computes its logits again, so they are not kept.
        body = jax.checkpoint(partial(add, head=head))
        return jax.lax.scan(body, l2 / 2 * jnp.square(head.kernel).sum(), chunks)[0]

    kernel = jnp.zeros((len(mean), classes), mean.dtype)
    return _minimise(objective, _Head(kernel, kernel[0]), tolerance, max_iterations)


def _minimise(
    objective: Callable[[_Head], Array], start: _Head, tolerance: Array, most: Array
) -> tuple[_Head, Array, Array, Array]:
    """Minimises by L-BFGS from `start`; returns as `_fit` does."""
    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)  # kept by the line search

    def unfinished(loop: tuple) -> Array:
        _, _, gradient, _, stalled, iterations = loop
        return (_largest(gradient) > tolerance) & (stalled < _STALLED) & (iterations < most)

    def iterate(loop: tuple) -> tuple:
        head, value, gradient, state, stalled, iterations = loop
        updates, state = tx.update(gradient, state, head, value=value, grad=gradient, value_fn=objective)
        head = optax.apply_updates(head, updates)
        after, gradient = value_and_grad(head, state=state)
        return head, after, gradient, state, jnp.where(after < value, 0, stalled + 1), iterations + 1

    zero = jnp.zeros((), jnp.int32)
    loop = (start, *jax.value_and_grad(objective)(start), tx.init(start), zero, zero)
    head, value, gradient, _, _, iterations = jax.lax.while_loop(unfinished, iterate, loop)
    return head, value, _largest(gradient), iterations


def _largest(head: _Head) -> Array:
    return jnp.maximum(jnp.abs(head.kernel).max(), jnp.abs(head.bias).max())


def _affine(head: _Head, x: Float[Array, "n c"]) -> Float[Array, "n classes"]:
    # Full precision: a GPU's default would keep the line search from converging.
    return jnp.matmul(x, head.kernel, precision=jax.lax.Precision.HIGHEST) + head.bias[None]
