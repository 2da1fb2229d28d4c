"""Swin Transformer (arXiv 2103.14030) as an encoder of visible tokens; dense when every unit is visible."""

from typing import Any

from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.backbones.attention import WindowAttention
from greenjax.backbones.geometry import stage_channels, stage_specs, token_grid
from greenjax.backbones.layers import (
    Block,
    LayerNorm,
    PatchEmbed,
    block_keys,
    checkpointed,
    drop_path_rates,
    filled_up,
    hidden_channels,
    linear,
    traced_once,
)
from greenjax.planning import Grouping, Plan


class PatchMerging(nnx.Module):
    """Joins each 2x2 block of visible tokens into one token of the next stage.

    Takes tokens in unit-major order, where the four members of a block are neighbours, already in the order in which
    Swin concatenates them. Source: section 3.1.
    """

    def __init__(self, dim: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * dim, epsilon=epsilon, rngs=rngs)
        self.reduction = linear(4 * dim, 2 * dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n//4 2*c"]:
        return self.reduction(self.norm(rearrange(x, "b (n four) c -> b n (four c)", four=4)))


class SwinStage(nnx.Module):
    """Blocks of one resolution, regular and shifted windows in turn, then the merging, if there is a next stage."""

    def __init__(self, blocks: list[Block], downsample: nnx.Module | None, remat: bool):
        self.blocks = nnx.List(blocks)
        self.downsample = downsample
        self.remat = remat

    def __call__(
        self, x: Float[Array, "b n c"], windows: tuple[Grouping, ...], keys: list[Key[Array, ""] | None]
    ) -> Float[Array, "b n c"]:
        """The stage's tokens before merging."""
        run = checkpointed if self.remat else traced_once
        for i, (block, key) in enumerate(zip(self.blocks, keys, strict=True)):
            x = run(block)(x, windows[i % len(windows)], key)
        return x


class Encoder(nnx.Module):
    """The encoder: patch embedding, stages, norm. Tokens are unit-major throughout (planning/tokens.py).

    Swin V2 has other parts, and is put together in the same way.
    """

    attention, block, merging = WindowAttention, Block, PatchMerging

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model = config.model
        self.grid, specs = token_grid(config), stage_specs(config)
        options = dict(epsilon=model.norm_epsilon, dtype=model.dtype, rngs=rngs)
        dims = stage_channels(config)
        rates = drop_path_rates(model.drop_path, model.depths)
        hidden = hidden_channels(model.mlp_ratio, dims)
        self.patch_embed = PatchEmbed(model.patch, model.in_channels, dims[0], **options)
        stages = []
        for i, (dim, heads) in enumerate(zip(dims, model.num_heads, strict=True)):
            blocks = []
            for rate in rates[i]:
                kind = self.attention_options(model, i)
                attention = self.attention(dim, specs[i].windows[0].rows, heads, **kind, rngs=rngs)
                blocks.append(self.block(attention, dim, hidden[i], drop_path=rate, **options))
            downsample = self.merging(dim, **options) if i + 1 < len(dims) else None
            stages.append(SwinStage(blocks, downsample, model.remat))
        self.stages = nnx.List(stages)
        self.norm = LayerNorm(dims[-1], epsilon=model.norm_epsilon, rngs=rngs)

    def attention_options(self, model: ConfigDict, stage: int) -> dict[str, Any]:
        return dict(attention=model.attention, dtype=model.dtype)

    def __call__(
        self, x: Float[Array, "b n c"], plan: Plan, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b units latent"], tuple[Float[Array, "b _ _"], ...]]:
        """Embedded patches -> the normed tokens of the last stage, and every stage's tokens before its merging."""
        outputs = []
        for i, (stage, groupings) in enumerate(zip(self.stages, plan.windows, strict=True)):
            x = stage(x, groupings, block_keys(key, i, len(stage.blocks)))
            outputs.append(x)
            if stage.downsample is not None:
                x = stage.downsample(filled_up(x, self.grid, i))
        return self.norm(x), tuple(outputs)
