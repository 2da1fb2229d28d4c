"""NNX attention modules that models share."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from greenjax.backbones.initial import small_normal
from greenjax.backbones.layers import linear
from greenjax.errors import InputError
from greenjax.ops.group_attention import (
    attend,
    check_attention,
    group_attention,
    merge_heads,
    relative_position_bias,
    split_heads,
)
from greenjax.planning import Grouping


class WindowAttention(nnx.Module):
    """Multi-head attention inside local windows of grouped visible tokens.

    Where a grid is no multiple of the window, the planner cuts the windows at the border, and padding is never a key;
    or zeros fill them up, and attend (`model.border`). The projections are applied to the ungrouped tokens, so padding
    slots cost in the quadratic term only.
    Source: Swin Transformer (arXiv 2103.14030), section 3.2, equation 4; paper, sections 3.2 and 3.4.
    """

    def __init__(
        self, dim: int, window: int | None, num_heads: int, *, attention: str = "xla", dtype: Any, rngs: nnx.Rngs
    ):
        """`window`: the side of square windows with a relative position bias; None: no bias. `attention`: as
        group_attention has it."""
        self.num_heads, self.attention, self.biased = num_heads, attention, window is not None
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        if window is not None:
            table = small_normal(rngs.params(), ((2 * window - 1) ** 2, num_heads), jnp.float32)
            self.relative_position_bias_table = nnx.Param(table)
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"], grouping: Grouping) -> Float[Array, "b n c"]:
        bias = None
        if self.biased:
            bias = relative_position_bias(self.relative_position_bias_table[...], jnp.asarray(grouping.position))
        return self.proj(attention_in_windows(self.attention, self.qkv, x, bias, grouping, self.num_heads))


def attention_in_windows(
    attention: str,
    project: Callable[[Float[Array, "b n c"]], Float[Array, "b n qkv"]],
    x: Float[Array, "b n c"],
    bias: Float[Array, "#g k s s"] | None,
    grouping: Grouping,
    num_heads: int,
) -> Float[Array, "b n c"]:
    """`group_attention` of tokens by `project`, from which come queries, keys and values, those of the zeros beyond the
    border included: they are the biases alone."""
    tokens = x.shape[1]
    zeros = 0 if grouping.slot is None else np.shape(grouping.slot)[0] - tokens
    if zeros:
        x = jnp.pad(x, ((0, 0), (0, zeros), (0, 0)))
    return group_attention(attention, project(x), bias, grouping, num_heads)[:, :tokens]


class SelfAttention(nnx.Module):
    """Multi-head attention of all tokens to all tokens: global attention, and that of the decoder."""

    def __init__(self, dim: int, num_heads: int, *, dtype: Any, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"], where: None = None) -> Float[Array, "b n c"]:
        q, k, v = split_heads(self.qkv(x)[:, None], self.num_heads)
        return self.proj(merge_heads(attend(q, k, v, None, None))[:, 0])


def runnable(attention: str) -> str:
    """`attention` where it runs on this machine's devices, else "xla", which computes the same."""
    try:
        check_attention(attention)
    except InputError:
        return "xla"
    return attention
