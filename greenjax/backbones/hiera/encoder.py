"""Hiera (arXiv 2306.00989) as an encoder of visible tokens; dense when every unit is visible.

Its mask units are those of greenjax. In the first stages attention stays inside a unit: all windows have equally many
tokens, so nothing is grouped or padded. In the last two stages all visible tokens of an image attend to each other.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.backbones.convolutions import OverlappingEmbed
from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.hiera.family import is_local
from greenjax.backbones.initial import small_normal
from greenjax.backbones.layers import (
    LayerNorm,
    Mlp,
    block_keys,
    checkpointed,
    drop_path,
    drop_path_rates,
    hidden_channels,
    linear,
    traced_once,
)
from greenjax.ops.group_attention import attend, merge_heads, split_heads
from greenjax.planning import Plan


class PooledAttention(nnx.Module):
    """Multi-head attention inside mask units, or of all visible tokens; with `pool`, queries are the maxima of four
    tokens in turn, one token of the next stage. Source: section 3, figure 4."""

    def __init__(
        self, dim: int, outputs: int, num_heads: int, per_unit: int | None, pool: bool, *, dtype: Any, rngs: nnx.Rngs
    ):
        """`per_unit`: incoming tokens of a mask unit; None: attention is global."""
        options = dict(dtype=dtype, init=small_normal, rngs=rngs)
        self.num_heads, self.per_unit, self.pool = num_heads, per_unit, pool
        self.qkv = linear(dim, 3 * outputs, **options)
        self.proj = linear(outputs, outputs, **options)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b m d"]:
        qkv = rearrange(self.qkv(x), "b (g s) c -> b g s c", s=self.per_unit or x.shape[1])
        q, k, v = split_heads(qkv, self.num_heads)
        if self.pool:
            q = rearrange(q, "b g k (s four) d -> b g k s four d", four=4).max(axis=4)
        y = merge_heads(attend(q, k, v, None, None))
        return self.proj(rearrange(y, "b g s c -> b (g s) c"))


class HieraBlock(nnx.Module):
    """A transformer block. The first of a later stage widens its channels, and may pool 2 x 2 tokens to their
    maximum."""

    def __init__(
        self,
        dim: int,
        outputs: int,
        num_heads: int,
        hidden: int,
        per_unit: int | None,
        pools: bool,
        *,
        drop_path: float,
        epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.drop_path, self.pools = drop_path, pools
        self.norm1 = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.attn = PooledAttention(dim, outputs, num_heads, per_unit, pools, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(outputs, epsilon=epsilon, rngs=rngs)
        self.mlp = Mlp(outputs, hidden, dtype=dtype, rngs=rngs)
        self.proj = linear(dim, outputs, dtype=dtype, init=small_normal, rngs=rngs) if dim != outputs else None

    def __call__(self, x: Float[Array, "b n c"], key: Key[Array, ""] | None) -> Float[Array, "b m d"]:
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        normed = self.norm1(x)
        x = x if self.proj is None else self.proj(normed)
        if self.pools:
            x = rearrange(x, "b (n four) c -> b n four c", four=4).max(axis=2)
        x = x + drop_path(self.attn(normed), self.drop_path, attention_key)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, mlp_key)


class Stem(nnx.Module):
    """A convolution that overlaps its neighbours (7 x 7, stride 4), and a learnt position for every token."""

    def __init__(self, config: ConfigDict, dim: int, *, rngs: nnx.Rngs):
        self.grid = token_grid(config)
        self.proj = OverlappingEmbed(config, 0, 2 * config.model.patch - 1, rngs=rngs)
        self.positions = nnx.Param(small_normal(rngs.params(), (*self.grid.shape(0), dim), jnp.float32))

    def __call__(self, units: Float[Array, "b u side side c"], plan: Plan) -> Float[Array, "b n d"]:
        x = self.proj(units, plan)
        place = jnp.take(jnp.asarray(self.grid.raster(0)), plan.visible_units, axis=0).reshape(-1)
        in_raster_order = self.positions[...].reshape(-1, x.shape[2])
        return x + jnp.take(in_raster_order, place, axis=0, unique_indices=True).astype(x.dtype)[None]


class Stage(nnx.Module):
    """The blocks of one stage. The first block pools the tokens of the stage before, in as many stages from the second
    on as `model.query_pools` says."""

    def __init__(self, config: ConfigDict, stage: int, *, rngs: nnx.Rngs):
        model, dims, grid = config.model, stage_channels(config), token_grid(config)
        hidden = hidden_channels(model.mlp_ratio, dims)[stage]
        options = dict(epsilon=model.norm_epsilon, dtype=model.dtype, rngs=rngs)
        blocks = []
        for j, rate in enumerate(drop_path_rates(model.drop_path, model.depths)[stage]):
            before = max(stage - 1, 0) if j == 0 else stage  # attention changes one block after the tokens do
            per_unit = grid.tokens_per_unit(before) if is_local(before, len(dims)) else None
            shape = dims[before], dims[stage], model.num_heads[stage], hidden, per_unit
            pools = grid.side(before) > grid.side(stage)
            blocks.append(HieraBlock(*shape, pools, drop_path=rate, **options))
        self.blocks = nnx.List(blocks)


class Encoder(nnx.Module):
    """The encoder: stem, stages, norm. Tokens are unit-major throughout (planning/tokens.py)."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model, dims = config.model, stage_channels(config)
        self.remat = model.remat
        self.patch_embed = Stem(config, dims[0], rngs=rngs)
        self.stages = nnx.List(Stage(config, stage, rngs=rngs) for stage in range(len(dims)))
        self.norm = LayerNorm(dims[-1], epsilon=model.norm_epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], plan: Plan, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b units latent"], tuple[Float[Array, "b _ _"], ...]]:
        """Embedded patches -> the normed tokens of the last stage, and every stage's tokens at its end."""
        run = checkpointed if self.remat else traced_once
        outputs = []
        for i, stage in enumerate(self.stages):
            for block, block_key in zip(stage.blocks, block_keys(key, i, len(stage.blocks)), strict=True):
                x = run(block)(x, block_key)
            outputs.append(x)
        return self.norm(x), tuple(outputs)
