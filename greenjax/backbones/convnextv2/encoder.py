"""ConvNeXt V2 (arXiv 2301.00808) as an encoder of visible tokens: ConvNeXt with another block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from greenjax.backbones.convnext import encoder as convnext
from greenjax.backbones.convnext.family import KERNEL
from greenjax.backbones.convolutions import Backend, DepthwiseConv
from greenjax.backbones.initial import small_normal
from greenjax.backbones.layers import LayerNorm, constant, drop_path, linear
from greenjax.ops.primitives import gelu, token_sums
from greenjax.planning.sites import ConvIndex

EPSILON = 1e-6  # added to the mean norm
TINY = 1e-12  # the least norm of a channel


class ResponseNorm(nnx.Module):
    """Global response normalisation. It starts as the identity."""

    def __init__(self, dim: int):
        self.scale, self.bias = nnx.Param(constant(0, dim)), nnx.Param(constant(0, dim))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return response_norm(x, self.scale[...], self.bias[...])


@jax.custom_vjp
def response_norm(x: Float[Array, "b n c"], scale: Float[Array, " c"], bias: Float[Array, " c"]) -> Array:
    """x (1 + scale response) + bias in float32, and in x's dtype. The response of a channel is its norm over the tokens
    of an image, over the mean norm of all channels.

    Source: section 3.2, equations 1 to 3, and the residual connection behind them.
    """
    return _response_norm_fwd(x, scale, bias)[0]


def _response_norm_fwd(x, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    size = jnp.sqrt(jnp.maximum(token_sums(jnp.square(wide)), TINY**2))
    response, _ = _response(size)
    y = wide * (1 + scale[None, None] * response) + bias[None, None]
    return y.astype(x.dtype), (x, scale, size)


def _response_norm_bwd(saved, dy):
    x, scale, size = saved
    wide, dy = (a.astype(size.dtype) for a in (x, dy))
    response, mean = _response(size)
    projected = token_sums(dy * wide)
    d_response = projected * scale[None, None]
    d_size = (d_response - (d_response * response).mean(axis=2, keepdims=True)) / mean
    by_size = jnp.where(size > TINY, d_size / size, 0)  # a root at 0 has no gradient
    dx = dy * (1 + scale[None, None] * response) + wide * by_size
    d_scale, d_bias = (projected * response).sum(axis=(0, 1)), token_sums(dy).sum(axis=(0, 1))
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


response_norm.defvjp(_response_norm_fwd, _response_norm_bwd)


def _response(size: Float[Array, "b 1 c"]) -> tuple[Float[Array, "b 1 c"], Float[Array, "b 1 1"]]:
    mean = size.mean(axis=2, keepdims=True) + EPSILON
    return size / mean, mean


class ConvNeXtBlock(nnx.Module):
    """ConvNeXt's block with response normalisation inside the MLP, in place of the layer scale. Source: figure 5."""

    def __init__(
        self, dim: int, hidden: int, backend: Backend, *, drop_path: float, epsilon: float, dtype: Any, rngs: nnx.Rngs
    ):
        options = dict(dtype=dtype, init=small_normal, rngs=rngs)
        self.drop_path = drop_path
        self.conv = DepthwiseConv(dim, KERNEL, backend, rngs=rngs)
        self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.fc1 = linear(dim, hidden, **options)
        self.response_norm = ResponseNorm(hidden)
        self.fc2 = linear(hidden, dim, **options)

    def __call__(self, x: Float[Array, "b n c"], index: ConvIndex, key: Key[Array, ""] | None) -> Float[Array, "b n c"]:
        y = self.response_norm(gelu(self.fc1(self.norm(self.conv(x, index)))))
        return x + drop_path(self.fc2(y), self.drop_path, key)


class Encoder(convnext.Encoder):
    """ConvNeXt's encoder with the block of V2."""

    block = ConvNeXtBlock
