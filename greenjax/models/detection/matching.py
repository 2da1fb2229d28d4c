"""Which object a box stands for, and which boxes a loss takes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from greenjax.models.detection.boxes import overlaps


class Match(NamedTuple):
    """For every box of an image: the object that overlaps it most, and whether it is one, or background; neither: it
    is left out."""

    objects: Int[Array, " n"]
    positive: Bool[Array, " n"]
    negative: Bool[Array, " n"]


def matched(
    boxes: Float[Array, "n 4"],
    objects: Float[Array, "m 4"],
    valid: Bool[Array, " m"],
    *,
    low: float,
    high: float,
    best_too: bool = False,
) -> Match:
    """Matches by the intersection over union: an object from `high` on, background below `low`.

    With `best_too`, the boxes that overlap an object most are positive too, however little that is: then every object
    has a box. Source: Faster R-CNN (arXiv 1506.01497), section 3.1.2.
    """
    # Stored, because values that are computed twice need not be equal.
    overlap = jax.lax.optimization_barrier(jnp.where(valid[:, None], overlaps(objects, boxes), -1))
    most = overlap.max(axis=0)
    positive = most >= high
    if best_too:
        best = overlap.max(axis=1, keepdims=True)
        positive |= ((overlap == best) & (best > 0)).any(axis=0)
    return Match(overlap.argmax(axis=0), positive, (most < low) & ~positive)


class Drawn(NamedTuple):
    """Boxes of an image that a loss takes, by their indices: positive ones first, then negative ones, then none."""

    boxes: Int[Array, " k"]
    positive: Bool[Array, " k"]
    valid: Bool[Array, " k"]


def sampled(
    key: Key[Array, ""], positive: Bool[Array, " n"], negative: Bool[Array, " n"], number: int, share: float
) -> Drawn:
    """`number` random boxes, at most `share` of them positive; fewer where there are not so many."""
    n, most = len(positive), int(number * share)
    priority = jax.random.uniform(key, (n,))
    first = _some_of(positive, priority, min(most, n))
    rest = _some_of(negative, priority, min(number, n))
    taken = jnp.minimum(positive.sum(), len(first))
    others = jnp.minimum(negative.sum(), number - taken)
    place = jnp.arange(min(number, n))
    is_positive = place < taken
    index = jnp.where(is_positive, _at(first, place), _at(rest, place - taken))
    return Drawn(index, is_positive, place < taken + others)


def _some_of(which: Bool[Array, " n"], priority: Float[Array, " n"], k: int) -> Int[Array, " k"]:
    return jax.lax.top_k(jnp.where(which, priority, -1), k)[1]


def _at(x: Int[Array, " k"], place: Int[Array, " m"]) -> Int[Array, " m"]:
    return x[jnp.clip(place, 0, len(x) - 1)]
