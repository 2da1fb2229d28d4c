"""Twins (arXiv 2104.13840) as an encoder of visible tokens; dense when every unit is visible.

Twins-SVT alternates local attention in windows with attention to a sub-sampled map; Twins-PCPVT has the latter only. A
key of the sub-sampled map stands for a block of sr x sr tokens. Such a block lies inside one mask unit, so it is
visible or masked as a whole, and keys come from visible tokens only. The positional encoding generator reaches over the
borders of units (planning/sites.py).
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.backbones.attention import WindowAttention
from greenjax.backbones.convolutions import Backend, DepthwiseConv, conv_index, stage_backends
from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.initial import xavier
from greenjax.backbones.layers import (
    Block,
    LayerNorm,
    PatchEmbed,
    block_keys,
    checkpointed,
    constant,
    drop_path_rates,
    hidden_channels,
    linear,
    traced_once,
)
from greenjax.backbones.twins.family import EPSILON
from greenjax.ops.group_attention import attend, merge_heads
from greenjax.ops.sparse_conv import block_conv
from greenjax.planning import Plan
from greenjax.planning.sites import ConvIndex


class Sites(NamedTuple):
    """Where the visible tokens of one stage are."""

    window: Any  # a Grouping; None in Twins-PCPVT
    neighbours: ConvIndex  # of a 3 x 3 submanifold convolution


class BlockEmbed(nnx.Module):
    """A convolution whose kernel equals its stride, over unit-major tokens, and a norm.

    It is the patch embedding between stages (2 x 2) and the sub-sampling of keys (sr x sr).
    """

    def __init__(self, side: int, inputs: int, outputs: int, backend: Backend, *, rngs: nnx.Rngs):
        """`backend`: of the tokens that come in."""
        kernel = xavier(rngs.params(), (side * side * inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(kernel.reshape(side, side, inputs, outputs))
        self.bias = nnx.Param(constant(0, outputs))
        self.norm = LayerNorm(outputs, epsilon=EPSILON, rngs=rngs)
        self.backend = backend

    def __call__(self, x: Float[Array, "b n c"], sites: Sites) -> Float[Array, "b m d"]:
        inputs = sites.neighbours.inputs
        return self.norm(block_conv(x, self.kernel[...], self.bias[...], inputs, **self.backend._asdict()))


class GlobalAttention(nnx.Module):
    """Multi-head attention of all visible tokens to a sub-sampled map of them. Source: section 3.2, GSA."""

    def __init__(self, dim: int, num_heads: int, ratio: int, backend: Backend, *, dtype: Any, rngs: nnx.Rngs):
        """`ratio`: a block of ratio x ratio tokens gives one key and value; 1: every token does."""
        self.num_heads = num_heads
        self.q = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.sr = BlockEmbed(ratio, dim, dim, backend, rngs=rngs) if ratio > 1 else None
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"], sites: Sites) -> Float[Array, "b n c"]:
        keys = x if self.sr is None else self.sr(x, sites)
        q = rearrange(self.q(x), "b n (k d) -> b 1 k n d", k=self.num_heads)
        k, v = rearrange(self.kv(keys), "b m (two k d) -> two b 1 k m d", two=2, k=self.num_heads)
        return self.proj(merge_heads(attend(q, k, v, None, None))[:, 0])


class TwinsStage(nnx.Module):
    """Blocks of one resolution, with the positional encoding generator (PEG) after the first.

    The PEG is a depth-wise 3 x 3 convolution beside an identity. Source: section 3.1, after arXiv 2102.10882.
    """

    def __init__(self, config: ConfigDict, stage: int, rates: list[float], backends: list[Backend], *, rngs: nnx.Rngs):
        """`rates`: drop-path, by block of this stage. `backends`: by stage."""
        dims = stage_channels(config)
        embed = partial(BlockEmbed, 2, dims[stage - 1], dims[stage], backends[stage - 1], rngs=rngs)
        self.patch_embed = embed() if stage else None  # the first stage's is the encoder's
        self.blocks = nnx.List(_blocks(config, stage, rates, backends[stage], rngs))
        self.peg = DepthwiseConv(dims[stage], 3, backends[stage], rngs=rngs)
        self.remat = config.model.remat

    def __call__(
        self, x: Float[Array, "b n c"], sites: Sites, keys: list[Key[Array, ""] | None]
    ) -> Float[Array, "b n c"]:
        run = checkpointed if self.remat else traced_once
        for i, (block, key) in enumerate(zip(self.blocks, keys, strict=True)):
            x = run(block)(x, sites.window if isinstance(block.attn, WindowAttention) else sites, key)
            if i == 0:
                x = x + self.peg(x, sites.neighbours)
        return x


class Encoder(nnx.Module):
    """The encoder: a patch embedding and blocks a stage, norm. Tokens are unit-major throughout (planning/tokens.py).

    `model.sparse_conv` says who computes the convolutions. The first patch embedding takes whole patches of pixels, so
    it is a matrix product under each of them.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model = config.model
        self.grid = token_grid(config)
        dims = stage_channels(config)
        pixels = model.patch, model.in_channels
        self.patch_embed = PatchEmbed(*pixels, dims[0], epsilon=EPSILON, dtype=model.dtype, rngs=rngs)
        rates = drop_path_rates(model.drop_path, model.depths)
        backends = stage_backends(config)
        self.stages = nnx.List(TwinsStage(config, i, rates[i], backends, rngs=rngs) for i in range(len(dims)))
        self.norm = LayerNorm(dims[-1], epsilon=model.norm_epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], plan: Plan, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b units latent"], tuple[Float[Array, "b _ _"], ...]]:
        """Embedded patches -> the normed tokens of the last stage, and every stage's tokens at its end."""
        sites = [self._sites(i, plan) for i in range(len(self.stages))]
        outputs = []
        for i, stage in enumerate(self.stages):
            if stage.patch_embed is not None:
                x = stage.patch_embed(x, sites[i - 1])
            x = stage(x, sites[i], block_keys(key, i, len(stage.blocks)))
            outputs.append(x)
        return self.norm(x), tuple(outputs)

    def _sites(self, stage: int, plan: Plan) -> Sites:
        window = plan.windows[stage][0] if plan.windows[stage] else None
        return Sites(window, conv_index(self.grid, plan, stage))


def _blocks(config: ConfigDict, stage: int, rates: list[float], backend: Backend, rngs: nnx.Rngs) -> list[Block]:
    """The blocks of one stage, with the drop-path rate of each."""
    model, dims = config.model, stage_channels(config)
    dim, heads = dims[stage], model.num_heads[stage]
    hidden = hidden_channels(model.mlp_ratio, dims)[stage]

    def attention(block: int) -> nnx.Module:
        if model.window is not None and block % 2 == 0:  # in Twins-SVT local attention comes first
            return WindowAttention(dim, None, heads, attention=model.attention, dtype=model.dtype, rngs=rngs)
        return GlobalAttention(dim, heads, model.sr_ratios[stage], backend, dtype=model.dtype, rngs=rngs)

    options = dict(epsilon=model.norm_epsilon, dtype=model.dtype, rngs=rngs)
    return [Block(attention(i), dim, hidden, drop_path=rate, **options) for i, rate in enumerate(rates)]
