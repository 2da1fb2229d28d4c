"""NNX attention modules that models share."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from greenjax.backbones.layers import linear, small_normal
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
    """Multi-head attention inside local windows, with relative position bias, on grouped visible tokens.

    The projections are applied to the ungrouped tokens, so padding slots cost in the quadratic term only.
    Source: Swin Transformer (arXiv 2103.14030), section 3.2, equation 4; paper, sections 3.2 and 3.4.
    """

    def __init__(self, dim: int, window: int, num_heads: int, *, attention: str = "xla", dtype: Any, rngs: nnx.Rngs):
        """`attention`: as group_attention has it."""
        self.num_heads = num_heads
        self.attention = attention
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.relative_position_bias_table = nnx.Param(
            small_normal(rngs.params(), ((2 * window - 1) ** 2, num_heads), jnp.float32)
        )
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"], grouping: Grouping) -> Float[Array, "b n c"]:
        bias = relative_position_bias(self.relative_position_bias_table[...], jnp.asarray(grouping.position))
        return self.proj(group_attention(self.attention, self.qkv(x), bias, grouping, self.num_heads))


class SelfAttention(nnx.Module):
    """Multi-head attention of all tokens to all tokens, for the decoder."""

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
