"""Non-maximum suppression with static shapes: greedy, exact, of any number of boxes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from greenjax.models.detection.boxes import overlaps

BLOCK = 256  # boxes that are looked at together


class Best(NamedTuple):
    """The survivors of every image so far, and how many there are."""

    places: Int[Array, "b k"]  # in the order of the scores
    boxes: Float[Array, "b k 4"]
    groups: Int[Array, "b k"]
    found: Int[Array, " b"]


def suppressed(
    boxes: Float[Array, "b n 4"],
    scores: Float[Array, "b n"],
    groups: Int[Array, "b n"],
    valid: Bool[Array, "b n"],
    *,
    threshold: float,
    limit: int,
) -> tuple[Int[Array, "b k"], Bool[Array, "b k"]]:
    """The indices of the best `limit` boxes of every image that survive, by falling score, and which of them are any.

    A box survives unless a better one of its group that survives has an intersection over union above `threshold` with
    it; of equal scores the first is the better one. Boxes that are not valid are as if they were not there.

    Blocks of boxes are taken in the order of their scores until `limit` have survived, so memory does not grow with
    n * n, and no number of candidates is too large.
    """
    b, n = scores.shape
    block = min(BLOCK, n)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -n % block)))
    real = jnp.arange(order.shape[1])[None] < valid.sum(axis=1, keepdims=True)
    ordered = jnp.take_along_axis(boxes, order[..., None], axis=1), jnp.take_along_axis(groups, order, axis=1), real

    def goes_on(state: tuple[Array, Best]) -> Bool[Array, ""]:
        start, best = state
        first = jnp.take(real, start, axis=1, mode="fill", fill_value=False)
        return (first & (best.found < limit)).any()

    def step(state: tuple[Array, Best]) -> tuple[Array, Best]:
        start, best = state
        its = [jax.lax.dynamic_slice_in_dim(x, start, block, axis=1) for x in ordered]
        return start + block, _with_block(best, start, its[0], its[1], its[2], threshold)

    none = jnp.zeros((b, limit), order.dtype)
    best = Best(none, jnp.zeros((b, limit, 4), boxes.dtype), none.astype(groups.dtype), none[:, 0])
    _, best = jax.lax.while_loop(goes_on, step, (jnp.zeros((), order.dtype), best))
    return jnp.take_along_axis(order, best.places, axis=1), jnp.arange(limit)[None] < best.found[:, None]


def _with_block(
    best: Best,
    start: Int[Array, ""],
    boxes: Float[Array, "b m 4"],
    groups: Int[Array, "b m"],
    alive: Bool[Array, "b m"],
    threshold: float,
) -> Best:
    """The survivors with those of a block, whose boxes stand from `start` on in the order of the scores."""
    limit = best.places.shape[1]
    against = (jnp.arange(limit)[None] < best.found[:, None])[:, :, None]
    alive &= ~(_clashes(best.boxes, best.groups, boxes, groups, threshold) & against).any(axis=1)
    keep = _greedy(alive, _clashes(boxes, groups, boxes, groups, threshold))
    rank = jnp.where(keep, best.found[:, None] + jnp.cumsum(keep, axis=1) - 1, limit)
    write = jax.vmap(lambda into, rank, x: into.at[rank].set(x, mode="drop"))
    places = jnp.broadcast_to(start + jnp.arange(rank.shape[1])[None], rank.shape)
    return Best(
        write(best.places, rank, places),
        write(best.boxes, rank, boxes),
        write(best.groups, rank, groups),
        jnp.minimum(best.found + keep.sum(axis=1, dtype=best.found.dtype), limit),
    )


def _clashes(
    better: Float[Array, "b n 4"],
    better_groups: Int[Array, "b n"],
    boxes: Float[Array, "b m 4"],
    groups: Int[Array, "b m"],
    threshold: float,
) -> Bool[Array, "b n m"]:
    return (overlaps(better, boxes) > threshold) & (better_groups[:, :, None] == groups[:, None, :])


def _greedy(alive: Bool[Array, "b n"], clash: Bool[Array, "b n n"]) -> Bool[Array, "b n"]:
    """Which boxes of a sorted block survive one another.

    Boxes that a better survivor clashes with are taken away, again and again until nothing changes. Whether a box
    survives depends on better boxes alone, so this ends, and in the greedy choice.
    """
    n = alive.shape[1]
    clash &= (jnp.arange(n)[:, None] < jnp.arange(n)[None])[None]

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        new = alive & ~(keep[:, :, None] & clash).any(axis=1)
        return new, (new != keep).any()

    return jax.lax.while_loop(lambda state: state[1], again, (alive, jnp.array(True)))[0]
