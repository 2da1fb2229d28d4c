"""The convolutions that detectors are made of, and their initial values, those of torchvision."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from greenjax.backbones.initial import scaled_normal, scaled_uniform
from greenjax.backbones.layers import constant
from greenjax.ops.primitives import matmul

# Kernels are (row, column, in, out), matrices (in, out). PyTorch's names, with the arguments that torchvision gives.
normal = scaled_normal(lambda shape: 0.01)
kaiming_uniform = scaled_uniform(lambda shape: math.sqrt(3 / math.prod(shape[:-1])))  # a = 1
kaiming_normal = scaled_normal(lambda shape: math.sqrt(2 / (math.prod(shape) // shape[-2])))  # fan_out, relu
linear_uniform = scaled_uniform(lambda shape: math.sqrt(1 / shape[0]))  # nn.Linear's own


class Conv(nnx.Module):
    """A convolution with an odd side and zeros beyond the border; float32 parameters, computes in `dtype`."""

    def __init__(self, inputs: int, outputs: int, side: int, *, init: Callable[..., Any], dtype: Any, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs.params(), (side, side, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(constant(0, outputs))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        x, kernel, bias = (a.astype(self.dtype) for a in (x, self.kernel[...], self.bias[...]))
        if len(kernel) == 1:
            return matmul(x, kernel[0, 0], bias)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + bias[None, None, None]


class Upsampling(nnx.Module):
    """A transposed convolution with side and stride 2: every pixel becomes a block of 2 x 2."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kaiming_normal(rngs.params(), (2, 2, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(constant(0, outputs))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 2 2 d"]:
        """The block of each pixel. Moving all channels to their places would cost more than the product."""
        x, kernel, bias = (a.astype(self.dtype) for a in (x, self.kernel[...], self.bias[...]))
        y = matmul(x, rearrange(kernel, "p q c d -> c (p q d)"), jnp.tile(bias, 4))
        return rearrange(y, "b h w (p q d) -> b h w p q d", p=2, q=2)
