"""Weighted k-nearest-neighbour classification on frozen features.

Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv 1805.01978),
section 3.4; k = 20 and temperature 0.07 are what later work settled on (DINO, arXiv 2104.14294, appendix).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from greenjax.errors import InputError
from greenjax.evaluation.checks import check_features, check_finite, pad_rows

_TINY = 1e-12  # least norm: features that are all zero stay zero


class Neighbours(NamedTuple):
    """The nearest images of the bank, nearest first; among equally near images the order is that of the bank."""

    similarity: Float[Array, "q k"]  # cosine
    label: Integer[Array, "q k"]


def knn_scores(
    bank: Float[np.ndarray, "m c"],
    labels: Integer[np.ndarray, " m"],
    queries: Float[np.ndarray, "n c"],
    classes: int,
    *,
    k: Sequence[int] = (20,),
    temperature: float | int = 0.07,
    query_chunk: int = 4096,
    bank_chunk: int = 16384,
) -> dict[int, Float[np.ndarray, "n classes"]]:
    """By k, the classes' shares of the votes of each query's k nearest neighbours; rows sum to 1.

    A neighbour votes for its class with weight exp(cosine similarity / temperature). Among equally near neighbours the
    first in the bank counts.

    One device computes all. At a time it holds `query_chunk` queries, `bank_chunk` images of the bank and their
    similarities; the result takes n * classes numbers a k on the host. Raises InputError for a k larger than the bank,
    a temperature that is not above 0, labels that are no class, and features that are not finite.
    """
    _check(bank, labels, queries, classes, k, temperature)
    rows = min(query_chunk, len(queries))  # chunks of one size, so that each function compiles once
    ascending, found = tuple(sorted(set(k))), {each: [] for each in k}
    for first in range(0, len(queries), rows):
        part = queries[first : first + rows]
        nearest = _nearest(jax.device_put(pad_rows(part, rows)), bank, labels, max(k), min(bank_chunk, len(bank)))
        for each, shares in zip(ascending, jax.device_get(_votes(nearest, float(temperature), ascending, classes))):
            found[each].append(shares[: len(part)])
    return {each: np.concatenate(parts) for each, parts in found.items()}


def _check(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int, k: Sequence[int], t: float | int
) -> None:
    check_features(bank, labels, classes)
    check_finite("features", queries)
    if not len(queries):
        raise InputError("queries are of 0 images: expected at least 1")
    if not k or min(k) < 1 or max(k) > len(bank):
        raise InputError(f"k is {tuple(k)}: expected numbers from 1 to {len(bank)}, the images of the bank")
    if not t > 0:
        raise InputError(f"temperature is {t}: expected a number above 0")


def _nearest(queries: Array, bank: np.ndarray, labels: np.ndarray, k: int, rows: int) -> Neighbours:
    """The k nearest images of the whole bank, of which `rows` are on the devices at a time."""
    nobody = np.full((len(queries), k), -np.inf, queries.dtype), np.zeros((len(queries), k), np.int32)
    best = Neighbours(*jax.device_put(nobody))
    unit = _unit(queries)
    for part in _parts(bank, labels, rows):
        best = _nearer(best, unit, *jax.device_put(part))
    return best


def _parts(bank: np.ndarray, labels: np.ndarray, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.int32]]:
    """Parts of the bank, padded to `rows` images, and the number of images in each."""
    for first in range(0, len(bank), rows):
        part, label = bank[first : first + rows], labels[first : first + rows].astype(np.int32)
        yield pad_rows(part, rows), pad_rows(label, rows), np.int32(len(part))


@jax.jit
def _unit(features: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """Scales every row to length 1."""
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), _TINY)


@jax.jit
def _nearer(
    best: Neighbours,
    queries: Float[Array, "q c"],
    bank: Float[Array, "m c"],
    labels: Integer[Array, " m"],
    count: Integer[Array, ""],
) -> Neighbours:
    """The nearest among `best` and the first `count` images of one more part of the bank."""
    k = best.label.shape[1]
    # Full precision: on a GPU the default would change the order of near neighbours.
    similarity = jnp.matmul(queries, _unit(bank).T, precision=jax.lax.Precision.HIGHEST)
    similarity = jnp.where((jnp.arange(len(bank)) < count)[None], similarity, -jnp.inf)
    # top_k keeps the order of equals, and earlier images stand in front.
    nearest, at = jax.lax.top_k(jnp.concatenate((best.similarity, similarity), axis=1), k)
    earlier = jnp.take_along_axis(best.label, jnp.minimum(at, k - 1), axis=1)
    return Neighbours(nearest, jnp.where(at < k, earlier, labels[jnp.maximum(at - k, 0)]))


@partial(jax.jit, static_argnames=("temperature", "ks", "classes"))
def _votes(
    found: Neighbours, temperature: float, ks: tuple[int, ...], classes: int
) -> tuple[Float[Array, "q classes"], ...]:
    """The shares of the votes after each k of the ascending `ks`."""
    # Relative to the nearest neighbour, which changes no share: exp(1 / temperature) may overflow.
    weights = jnp.exp((found.similarity - found.similarity[:, :1]) / temperature)
    rows = jnp.arange(len(weights))

    def vote(i: Array, scores: Array) -> Array:
        # One vote a query at a time, so the order of the sums is always the same.
        return scores.at[rows, found.label[:, i]].add(weights[:, i], unique_indices=True)

    scores, shares = jnp.zeros((len(weights), classes), weights.dtype), []
    for start, stop in zip((0, *ks), ks):
        scores = jax.lax.fori_loop(start, stop, vote, scores)
        shares.append(scores / scores.sum(axis=1, keepdims=True))
    return tuple(shares)
