"""ConvNeXt V2 (arXiv 2301.00808) as an encoder of visible tokens: ConvNeXt with another block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from greenjax.backbones.convnext import encoder as convnext
from greenjax.backbones.layers import constant
from greenjax.ops.primitives import gelu, token_sums

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


class ConvNeXtBlock(convnext.Block):
    """ConvNeXt's block with response normalisation inside the MLP, in place of the layer scale. Source: figure 5."""

    def __init__(self, dim: int, hidden: int, *backend: Any, **options: Any):
        """Arguments as of `Block`."""
        super().__init__(dim, hidden, *backend, **options)
        self.response_norm = ResponseNorm(hidden)

    def mlp(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.fc2(self.response_norm(gelu(self.fc1(x))))


class Encoder(convnext.Encoder):
    """ConvNeXt's encoder with the block of V2."""

    block = ConvNeXtBlock
