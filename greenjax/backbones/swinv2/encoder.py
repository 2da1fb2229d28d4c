"""Swin Transformer V2 (arXiv 2111.09883) as an encoder of visible tokens: Swin with other parts."""

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Float32, Key
from ml_collections import ConfigDict

from greenjax.backbones.attention import attention_in_windows
from greenjax.backbones.layers import Block, LayerNorm, constant, drop_path, linear
from greenjax.backbones.swin import encoder as swin
from greenjax.ops.group_attention import relative_position_bias
from greenjax.planning import Grouping

LARGEST_SCALE = 100.0  # of the cosines, section 3.2: the temperature is at least 0.01


class PositionMlp(nnx.Module):
    """The continuous position bias: a small network from log-spaced offsets to a bias a head (section 3.3, eq. 4).

    Offsets are divided by the window `pretrained`, less 1; 0 stands for `window`. With the window of the pre-training a
    network gives each offset the bias that it had there.
    """

    def __init__(self, window: int, pretrained: int, num_heads: int, *, rngs: nnx.Rngs):
        self.window, self.pretrained = window, pretrained or window
        self.fc1 = linear(2, 512, dtype=jnp.float32, rngs=rngs)
        self.fc2 = linear(512, num_heads, use_bias=False, dtype=jnp.float32, rngs=rngs)

    def __call__(self) -> Float[Array, "offsets k"]:
        """The table that relative_position_bias takes; 16 times the sigmoid keeps it between 0 and 16."""
        offsets = jnp.asarray(log_offsets(self.window, self.pretrained))
        return 16 * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(offsets))))


@cache
def log_offsets(window: int, pretrained: int) -> Float32[np.ndarray, "offsets 2"]:
    """Every offset (dy, dx) of a window, row by row, on a logarithmic scale: the largest of the window `pretrained` is
    log2(9) / 3."""
    axis = np.arange(1 - window, window) / max(pretrained - 1, 1) * 8
    axis = np.sign(axis) * np.log2(np.abs(axis) + 1) / np.log2(8)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


class CosineAttention(nnx.Module):
    """Attention inside windows by cosines, on grouped visible tokens. Source: section 3.2, equation 2.

    Queries and values have a bias, keys have none. Cosines and their scale are put into queries and keys, so that the
    attention of all families computes them.
    """

    def __init__(
        self, dim: int, window: int, num_heads: int, *, pretrained: int, attention: str, dtype: Any, rngs: nnx.Rngs
    ):
        """`attention`: as group_attention has it."""
        self.num_heads = num_heads
        self.attention = attention
        self.qkv = linear(dim, 3 * dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.q_bias = nnx.Param(constant(0, dim))
        self.v_bias = nnx.Param(constant(0, dim))
        self.logit_scale = nnx.Param(np.full(num_heads, math.log(10), np.float32))
        self.position_mlp = PositionMlp(window, pretrained, num_heads, rngs=rngs)
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"], grouping: Grouping) -> Float[Array, "b n c"]:
        bias = relative_position_bias(self.position_mlp(), jnp.asarray(grouping.position))
        return self.proj(attention_in_windows(self.attention, self._projections, x, bias, grouping, self.num_heads))

    def _projections(self, x: Float[Array, "b n c"]) -> Float[Array, "b n qkv"]:
        """Queries of length scale * sqrt(d), keys of length 1, and values: q k^T / sqrt(d) is the scaled cosine."""
        qkv = self.qkv(x)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        q, v = q + self.q_bias[...].astype(q.dtype)[None, None], v + self.v_bias[...].astype(v.dtype)[None, None]
        heads = [rearrange(a, "b n (k d) -> b n k d", k=self.num_heads) for a in (q, k)]
        scale = jnp.exp(jnp.minimum(self.logit_scale[...], math.log(LARGEST_SCALE)))
        scale = scale * heads[0].shape[-1] ** 0.5
        q, k = (rearrange(unit(a, s), "b n k d -> b n (k d)") for a, s in zip(heads, (scale, jnp.ones_like(scale))))
        return jnp.concatenate([q, k, v], axis=-1)


def unit(x: Float[Array, "b n k d"], length: Float[Array, " k"]) -> Float[Array, "b n k d"]:
    """Vectors of this length by head, computed in float32. A vector of zeros stays as it is, and so does its gradient
    finite."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.square(wide).sum(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
    return (wide * inverse * length[None, None, :, None]).astype(x.dtype)


class PostNormBlock(Block):
    """A block whose norms stand behind attention and MLP. They start at zero: section 3.2."""

    def __init__(self, attention: nnx.Module, dim: int, hidden: int, **options: Any):
        super().__init__(attention, dim, hidden, **options)
        self.norm1.scale, self.norm2.scale = nnx.Param(constant(0, dim)), nnx.Param(constant(0, dim))

    def __call__(self, x: Float[Array, "b n c"], where: Any, key: Key[Array, ""] | None) -> Float[Array, "b n c"]:
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.norm1(self.attn(x, where)), self.drop_path, attention_key)
        return x + drop_path(self.norm2(self.mlp(x)), self.drop_path, mlp_key)


class PatchMerging(nnx.Module):
    """Joins each 2x2 block of visible tokens, as in Swin; the norm stands behind the projection."""

    def __init__(self, dim: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs):
        self.reduction = linear(4 * dim, 2 * dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(2 * dim, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n//4 2*c"]:
        return self.norm(self.reduction(rearrange(x, "b (n four) c -> b n (four c)", four=4)))


class Encoder(swin.Encoder):
    """Swin's encoder with the parts of Swin V2."""

    attention, block, merging = CosineAttention, PostNormBlock, PatchMerging

    def attention_options(self, model: ConfigDict, stage: int) -> dict[str, Any]:
        windows = model.pretrained_windows
        return super().attention_options(model, stage) | {"pretrained": windows[stage] if windows else 0}
