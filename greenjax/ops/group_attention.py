"""Attention inside groups: the paper's group window attention (section 3.2), dense attention being one case of it."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from greenjax.errors import InputError
from greenjax.ops.primitives import permute, product, stored
from greenjax.planning import Grouping


@jax.custom_vjp
def attend(
    q: Float[Array, "b g k s d"],
    k: Float[Array, "b g k t d"],
    v: Float[Array, "b g k t d"],
    bias: Float[Array, "#g k s t"] | None,
    window: Int[Array, "g s"] | None,
) -> Float[Array, "b g k s d"]:
    """softmax(q k^T / sqrt(d) + bias) v in every group, among slots of the same window (None: to all of the t keys).

    One bias may serve all groups.

    The softmax is float32: bfloat16 logits round small differences away. Padding slots (window -1) reach no other slot,
    neither by values nor by gradients.
    """
    return _attend_fwd(q, k, v, bias, window)[0]


def _attend_fwd(q, k, v, bias, window):
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bgksd,bgktd->bgkst", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias[None].astype(wide)
    if window is not None:
        same = window[:, :, None] == window[:, None, :]
        # Rows of padding get equal logits: with -inf alone, or after an overflow, they would be NaN.
        padding = window[:, :, None] < 0
        hidden = jnp.where(padding, 0.0, -jnp.inf).astype(wide)
        logits = jnp.where((same & ~padding)[None, :, None], logits, hidden[None, :, None])
    # Without the barrier, XLA for GPUs also keeps the float32 logits, and computes their softmax again.
    p = jax.lax.optimization_barrier(jax.nn.softmax(logits, axis=-1).astype(v.dtype))
    return product("bgkst,bgktd->bgksd", p, v), (q, k, v, p, None if bias is None else bias[..., :0])


def _attend_bwd(saved, dy):
    q, k, v, p, bias = saved
    wide = jnp.promote_types(q.dtype, jnp.float32)
    dy = stored(dy)
    dv = slots_product(dy, p)
    dp = jnp.einsum("bgksd,bgktd->bgkst", dy, v, preferred_element_type=wide)
    weighted = dp * p
    d_logits = weighted - p * weighted.sum(axis=-1, keepdims=True)
    d_bias = None if bias is None else _sum_to(len(bias), d_logits).astype(bias.dtype)
    d_logits = (d_logits * q.shape[-1] ** -0.5).astype(q.dtype)
    dq = product("bgkst,bgktd->bgksd", d_logits, k)
    dk = slots_product(q, d_logits)
    return dq, dk, dv, d_bias, None


attend.defvjp(_attend_fwd, _attend_bwd)


def _sum_to(groups: int, x: Float[Array, "b g k s t"]) -> Float[Array, "{groups} k s t"]:
    """The sum over images and, where one group stands for all, over groups."""
    x = x.reshape(-1, groups, *x.shape[2:])
    # A matrix product: on the CPU, XLA's sum over the leading axis takes many times as long.
    return jnp.einsum("b,bgkst->gkst", jnp.ones(len(x), x.dtype), x)


def slots_product(x: Float[Array, "b g k s d"], pairs: Float[Array, "b g k s t"]) -> Float[Array, "b g k t d"]:
    """pairs^T x. In bfloat16 on a CPU, of the two x is transposed, the smaller one, and so is the result."""

    def transposed(x: Array, pairs: Array) -> Array:
        return product("bgkds,bgkst->bgkdt", stored(x.swapaxes(-1, -2)), pairs).swapaxes(-1, -2)

    plain = partial(jnp.einsum, "bgksd,bgkst->bgktd")
    if x.dtype != jnp.bfloat16:
        return plain(x, pairs)
    return jax.lax.platform_dependent(x, pairs, cpu=transposed, default=plain)


@jax.custom_vjp
def relative_position_bias(table: Float[Array, "offsets k"], position: Int[Array, "g s"]) -> Float[Array, "g k s s"]:
    """The bias of every pair of slots: table row (dy + w - 1) * (2 w - 1) + dx + w - 1 for the offset (dy, dx).

    `position` is row * w + column inside the window. The gradient of the table would be a contended scatter-add over
    all pairs; it is taken as two products with one-hot positions instead, then summed along the diagonals.
    """
    w = _window_of(table.shape[0])
    row, column = position // w, position % w
    dy, dx = (axis[:, :, None] - axis[:, None, :] + w - 1 for axis in (row, column))
    return rearrange(table[dy * (2 * w - 1) + dx], "g s t k -> g k s t")


def _bias_fwd(table, position):
    return relative_position_bias(table, position), (position, _window_of(table.shape[0]))


def _bias_bwd(saved, d_bias):
    position, w = saved
    one_hot = jax.nn.one_hot(position, w * w, dtype=d_bias.dtype)
    columns = jnp.einsum("gkst,gtq->gksq", d_bias, one_hot)
    d_pairs = jnp.einsum("gksq,gsp->kpq", columns, one_hot)
    d_pairs = rearrange(d_pairs, "k (y x) (z w) -> k x w y z", y=w, z=w)
    d_table = _sum_diagonals(rearrange(_sum_diagonals(d_pairs), "k x w o -> k o x w"))
    return rearrange(d_table, "k dy dx -> (dy dx) k"), None


relative_position_bias.defvjp(_bias_fwd, _bias_bwd)


def _sum_diagonals(a: Float[Array, "*b w w"]) -> Float[Array, "*b o"]:
    """Sums a[i, j] over equal i - j, for i - j = -(w - 1) ... w - 1, by skewing: no scatter.

    Row i, reversed and padded to 2 w, moves right by i when the flat array is read with rows of 2 w - 1.
    """
    *batch, w, _ = a.shape
    padded = jnp.pad(a[..., ::-1], [(0, 0)] * (a.ndim - 1) + [(0, w)])
    skewed = padded.reshape(*batch, 2 * w * w)[..., : w * (2 * w - 1)].reshape(*batch, w, 2 * w - 1)
    return skewed.sum(axis=-2)


def _window_of(offsets: int) -> int:
    """Side of the window whose table has this many offsets, (2 w - 1) ** 2."""
    return (math.isqrt(offsets) + 1) // 2


def check_attention(attention: str) -> None:
    """Raises InputError if this attention cannot run on the devices; inside a trace, on those of its mesh."""
    if attention == "pallas" and "NVIDIA" not in (found := device_kind()):
        raise InputError(f"model.attention is 'pallas': it needs an NVIDIA GPU, found {found}; set it to 'xla'")


def device_kind() -> str:
    """The kind of the devices of the current mesh, or of the first local device."""
    of_mesh = jax.sharding.get_abstract_mesh().abstract_device
    return of_mesh.device_kind if of_mesh is not None else jax.devices()[0].device_kind


def group_attention(
    attention: str,
    qkv: Float[Array, "b n qkv"],
    bias: Float[Array, "#g k s s"] | None,
    grouping: Grouping,
    num_heads: int,
) -> Float[Array, "b n c"]:
    """Attention of ungrouped tokens inside their groups, by XLA ("xla") or by the kernel of greenjax ("pallas").

    Raises InputError where the kernel cannot run.
    """
    if attention == "pallas":
        from greenjax.ops.fused_attention import fused_group_attention  # imports Pallas

        check_attention(attention)
        return fused_group_attention(qkv, bias, grouping, num_heads)
    q, k, v = split_heads(enter_groups(qkv, grouping), num_heads)
    return leave_groups(merge_heads(attend(q, k, v, bias, jnp.asarray(grouping.window))), grouping)


def split_heads(qkv: Float[Array, "b g s qkv"], num_heads: int) -> tuple[Float[Array, "b g k s d"], ...]:
    """Queries, keys and values by head, from one projection. The gradient joins them in one pass."""
    parts: Any = parts_by_head(qkv, num_heads)
    return parts


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def parts_by_head(qkv, num_heads):
    return tuple(rearrange(qkv, "b g s (three k d) -> three b g k s d", three=3, k=num_heads))


def _parts_fwd(qkv, num_heads):
    return parts_by_head(qkv, num_heads), None


def _parts_bwd(num_heads, saved, gradients):
    del num_heads, saved
    return (rearrange(jnp.stack(gradients), "three b g k s d -> b g s (three k d)"),)


parts_by_head.defvjp(_parts_fwd, _parts_bwd)


def merge_heads(x: Float[Array, "b g k s d"]) -> Float[Array, "b g s k*d"]:
    return rearrange(x, "b g k s d -> b g s (k d)")


def enter_groups(x: Float[Array, "b n c"], grouping: Grouping) -> Float[Array, "b g s c"]:
    """Puts tokens into their slots; padding slots hold zeros."""
    if grouping.token is None:
        return x[:, None]
    g, s = np.shape(grouping.token)
    grouped = permute(x, jnp.asarray(grouping.token).reshape(-1), jnp.asarray(grouping.slot))
    return grouped.reshape(x.shape[0], g, s, x.shape[2])


def leave_groups(x: Float[Array, "b g s c"], grouping: Grouping) -> Float[Array, "b n c"]:
    """Takes tokens out of their slots, back into token order."""
    if grouping.token is None:
        return x[:, 0]
    flat = rearrange(x, "b g s c -> b (g s) c")
    return permute(flat, jnp.asarray(grouping.slot), jnp.asarray(grouping.token).reshape(-1))
