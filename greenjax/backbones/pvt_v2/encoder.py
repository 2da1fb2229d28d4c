"""PVT v2 (arXiv 2106.13797) as an encoder of visible tokens; dense when every unit is visible.

The patch embeddings and the depth-wise convolutions reach over the borders of mask units (planning/sites.py). The
attention is the global one of Twins: a key stands for a block of sr x sr tokens, which lies inside one mask unit, so
keys come from visible tokens only. There is no positional encoding: zeros beyond the border tell positions.
"""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.backbones.convolutions import Backend, DepthwiseConv, OverlappingEmbed, conv_index, stage_backends
from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.layers import (
    LayerNorm,
    block_keys,
    checkpointed,
    drop_path,
    drop_path_rates,
    hidden_channels,
    linear,
    traced_once,
)
from greenjax.backbones.pvt_v2.family import KERNEL
from greenjax.backbones.twins.encoder import GlobalAttention, Sites
from greenjax.backbones.twins.family import EPSILON
from greenjax.planning import Plan
from greenjax.planning.sites import ConvIndex


class PatchEmbed(nnx.Module):
    """A convolution whose kernel overlaps its neighbours, and a norm: over pixels, or over the tokens of a stage.

    Source: "Overlapping Patch Embedding". The kernel of the first is 2 s - 1 for the stride s.
    """

    def __init__(self, config: ConfigDict, stage: int, *, rngs: nnx.Rngs):
        kernel = KERNEL if stage else 2 * config.model.patch - 1
        self.proj = OverlappingEmbed(config, stage, kernel, rngs=rngs)
        self.norm = LayerNorm(stage_channels(config)[stage], epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "b *places c"], plan: Plan) -> Float[Array, "b n d"]:
        return self.norm(self.proj(x, plan))


class ConvMlp(nnx.Module):
    """Two dense layers with a depth-wise convolution and a GELU between them. Source: "Convolutional Feed-Forward"."""

    def __init__(self, dim: int, hidden: int, backend: Backend, *, dtype: Any, rngs: nnx.Rngs):
        self.fc1 = linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.conv = DepthwiseConv(hidden, KERNEL, backend, rngs=rngs)
        self.fc2 = linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"], index: ConvIndex) -> Float[Array, "b n c"]:
        return self.fc2.of_gelu(self.conv(self.fc1(x), index))


class PvtBlock(nnx.Module):
    """A transformer block: attention to sub-sampled tokens, and a convolutional MLP, each beside an identity."""

    def __init__(self, config: ConfigDict, stage: int, rate: float, *, rngs: nnx.Rngs):
        """`rate`: drop-path."""
        model, dims, backend = config.model, stage_channels(config), stage_backends(config)[stage]
        dim, hidden = dims[stage], hidden_channels(model.mlp_ratio, dims)[stage]
        options = dict(dtype=model.dtype, rngs=rngs)
        self.drop_path = rate
        self.norm1 = LayerNorm(dim, epsilon=model.norm_epsilon, rngs=rngs)
        self.attn = GlobalAttention(dim, model.num_heads[stage], model.sr_ratios[stage], backend, **options)
        self.norm2 = LayerNorm(dim, epsilon=model.norm_epsilon, rngs=rngs)
        self.mlp = ConvMlp(dim, hidden, backend, **options)

    def __call__(self, x: Float[Array, "b n c"], sites: Sites, key: Key[Array, ""] | None) -> Float[Array, "b n c"]:
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.attn(self.norm1(x), sites), self.drop_path, attention_key)
        return x + drop_path(self.mlp(self.norm2(x), sites.neighbours), self.drop_path, mlp_key)


class Stage(nnx.Module):
    """The patch embedding, but for the first stage, the blocks of one resolution, and a norm, but for the last."""

    def __init__(self, config: ConfigDict, stage: int, *, rngs: nnx.Rngs):
        model, dims = config.model, stage_channels(config)
        self.patch_embed = PatchEmbed(config, stage, rngs=rngs) if stage else None
        rates = drop_path_rates(model.drop_path, model.depths)[stage]
        self.blocks = nnx.List(PvtBlock(config, stage, rate, rngs=rngs) for rate in rates)
        inner = stage + 1 < len(dims)
        self.norm = LayerNorm(dims[stage], epsilon=model.norm_epsilon, rngs=rngs) if inner else None


class Encoder(nnx.Module):
    """The encoder: patch embedding, stages, norm. Tokens are unit-major throughout (planning/tokens.py)."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model, dims = config.model, stage_channels(config)
        self.grid, self.remat = token_grid(config), model.remat
        self.patch_embed = PatchEmbed(config, 0, rngs=rngs)
        self.stages = nnx.List(Stage(config, stage, rngs=rngs) for stage in range(len(dims)))
        self.norm = LayerNorm(dims[-1], epsilon=model.norm_epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], plan: Plan, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b units latent"], tuple[Float[Array, "b _ _"], ...]]:
        """Embedded patches -> the normed tokens of the last stage, and every stage's tokens at its end, all normed."""
        run = checkpointed if self.remat else traced_once
        outputs = []
        for i, stage in enumerate(self.stages):
            if stage.patch_embed is not None:
                x = stage.patch_embed(x, plan)
            sites = Sites(None, conv_index(self.grid, plan, i))
            for block, block_key in zip(stage.blocks, block_keys(key, i, len(stage.blocks)), strict=True):
                x = run(block)(x, sites, block_key)
            x = (self.norm if stage.norm is None else stage.norm)(x)
            outputs.append(x)
        return x, tuple(outputs)
