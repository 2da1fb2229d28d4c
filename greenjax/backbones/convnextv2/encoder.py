"""ConvNeXt V2 (arXiv 2301.00808) as an encoder of visible tokens: ConvNeXt with another block."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from greenjax.backbones.convnext import encoder as convnext
from greenjax.backbones.convnext.family import KERNEL
from greenjax.backbones.convolutions import Backend, DepthwiseConv
from greenjax.backbones.initial import small_normal
from greenjax.backbones.layers import LayerNorm, constant, drop_path, linear
from greenjax.ops.primitives import gelu
from greenjax.planning.sites import ConvIndex

EPSILON = 1e-6  # added to the mean response


class ResponseNorm(nnx.Module):
    """Global response normalisation, over the visible tokens of an image. It starts as the identity.

    Source: section 3.2, equations 1 to 3, and the residual connection behind them.
    """

    def __init__(self, dim: int):
        self.scale, self.bias = nnx.Param(constant(0, dim)), nnx.Param(constant(0, dim))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # A channel without any response has no gradient of its root: it counts as a tiny one.
        size = jnp.sqrt(jnp.maximum(jnp.square(wide).sum(axis=1, keepdims=True), 1e-24))
        response = size / (size.mean(axis=2, keepdims=True) + EPSILON)
        scale, bias = self.scale[...][None, None], self.bias[...][None, None]
        return (wide * (1 + scale * response) + bias).astype(x.dtype)


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
