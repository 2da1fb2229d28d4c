"""ConvNeXt (arXiv 2201.03545) as an encoder of visible tokens; dense when every unit is visible.

The depth-wise convolutions reach over the borders of mask units (planning/sites.py). Stem and down-sampling have
kernels as large as their strides, so they stay inside a unit.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.backbones.convnext.family import KERNEL
from greenjax.backbones.convolutions import Backend, DepthwiseConv, conv_index, stage_backends
from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.initial import small_normal
from greenjax.backbones.layers import (
    LayerNorm,
    PatchEmbed,
    block_keys,
    checkpointed,
    drop_path,
    drop_path_rates,
    hidden_channels,
    linear,
    traced_once,
)
from greenjax.planning import Plan
from greenjax.planning.sites import ConvIndex

INITIAL_SCALE = 1e-6  # of every branch, by channel: section A.1


class Block(nnx.Module):
    """A depth-wise convolution, a norm and an MLP beside an identity; the versions differ in `mlp`."""

    def __init__(
        self, dim: int, hidden: int, backend: Backend, *, drop_path: float, epsilon: float, dtype: Any, rngs: nnx.Rngs
    ):
        options = dict(dtype=dtype, init=small_normal, rngs=rngs)
        self.drop_path = drop_path
        self.conv = DepthwiseConv(dim, KERNEL, backend, rngs=rngs)
        self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.fc1 = linear(dim, hidden, **options)
        self.fc2 = linear(hidden, dim, **options)

    def __call__(self, x: Float[Array, "b n c"], index: ConvIndex, key: Key[Array, ""] | None) -> Float[Array, "b n c"]:
        return x + drop_path(self.mlp(self.norm(self.conv(x, index))), self.drop_path, key)

    def mlp(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """The MLP of a version, with what belongs to it."""
        raise NotImplementedError


class ConvNeXtBlock(Block):
    """The block of the first version, with a scale for each channel of its branch. Source: figure 4."""

    def __init__(self, dim: int, *sizes: Any, **options: Any):
        """Arguments as of `Block`."""
        super().__init__(dim, *sizes, **options)
        self.layer_scale = nnx.Param(np.full(dim, INITIAL_SCALE, np.float32))

    def mlp(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        y = self.fc2.of_gelu(self.fc1(x))
        return y * self.layer_scale[...].astype(y.dtype)[None, None]


class Downsample(nnx.Module):
    """A norm, and a convolution of 2 x 2 tokens with stride 2."""

    def __init__(self, dim: int, outputs: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.conv = linear(4 * dim, outputs, dtype=dtype, init=small_normal, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n//4 d"]:
        return self.conv(rearrange(self.norm(x), "b (n four) c -> b n (four c)", four=4))


class Stage(nnx.Module):
    """The down-sampling, but for the first stage, and the blocks of one resolution."""

    def __init__(self, config: ConfigDict, stage: int, block: Callable[..., nnx.Module], *, rngs: nnx.Rngs):
        """`block`: the class of the blocks."""
        model, dims = config.model, stage_channels(config)
        options = dict(epsilon=model.norm_epsilon, dtype=model.dtype, rngs=rngs)
        self.downsample = Downsample(dims[stage - 1], dims[stage], **options) if stage else None
        hidden = hidden_channels(model.mlp_ratio, dims)[stage]
        backend = stage_backends(config)[stage]
        self.blocks = nnx.List(
            block(dims[stage], hidden, backend, drop_path=rate, **options)
            for rate in drop_path_rates(model.drop_path, model.depths)[stage]
        )


class Encoder(nnx.Module):
    """The encoder: stem, stages, norm. Tokens are unit-major throughout (planning/tokens.py).

    ConvNeXt V2 has another block, and is put together in the same way.
    """

    block = ConvNeXtBlock

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model, dims = config.model, stage_channels(config)
        self.grid, self.remat = token_grid(config), model.remat
        options = dict(epsilon=model.norm_epsilon, dtype=model.dtype, rngs=rngs)
        self.patch_embed = PatchEmbed(model.patch, model.in_channels, dims[0], **options)
        self.stages = nnx.List(Stage(config, stage, self.block, rngs=rngs) for stage in range(len(dims)))
        self.norm = LayerNorm(dims[-1], epsilon=model.norm_epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], plan: Plan, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b units latent"], tuple[Float[Array, "b _ _"], ...]]:
        """Embedded patches -> the normed tokens of the last stage, and every stage's tokens at its end."""
        run = checkpointed if self.remat else traced_once
        outputs = []
        for i, stage in enumerate(self.stages):
            if stage.downsample is not None:
                x = stage.downsample(x)
            index = conv_index(self.grid, plan, i)
            for block, block_key in zip(stage.blocks, block_keys(key, i, len(stage.blocks)), strict=True):
                x = run(block)(x, index, block_key)
            outputs.append(x)
        return self.norm(x), tuple(outputs)
