"""Swin Transformer (arXiv 2103.14030) as an encoder of visible tokens; dense when every unit is visible."""

from itertools import accumulate
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.models.attention import WindowAttention
from greenjax.models.layers import LayerNorm, Mlp, PatchEmbed, checkpointed, drop_path, linear
from greenjax.planning import Grouping, token_grid

Windows = tuple[tuple[Grouping, ...], ...]


class SwinBlock(nnx.Module):
    """Window attention and an MLP, each behind a norm and beside an identity.

    Source: section 3.2, equation 3.
    """

    def __init__(
        self,
        dim: int,
        window: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        drop_path: float,
        epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.drop_path = drop_path
        self.norm1 = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.attn = WindowAttention(dim, window, num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.mlp = Mlp(dim, round(mlp_ratio * dim), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], grouping: Grouping, key: Key[Array, ""] | None
    ) -> Float[Array, "b n c"]:
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.attn(self.norm1(x), grouping), self.drop_path, attention_key)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, mlp_key)


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

    def __init__(self, blocks: list[SwinBlock], downsample: PatchMerging | None, remat: bool):
        self.blocks = nnx.List(blocks)
        self.downsample = downsample
        self.remat = remat

    def __call__(
        self, x: Float[Array, "b n c"], windows: tuple[Grouping, ...], keys: Key[Array, " blocks"] | None
    ) -> Float[Array, "b n c"]:
        """The stage's tokens before merging."""
        for i, block in enumerate(self.blocks):
            run = checkpointed(block, SwinBlock.__call__, self.remat)
            x = run(x, windows[i % len(windows)], None if keys is None else keys[i])
        return x


class Swin(nnx.Module):
    """The encoder: patch embedding, stages, norm. Tokens are unit-major throughout (planning/tokens.py)."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model = config.model
        grid = token_grid(config)
        shared = dict(epsilon=model.norm_epsilon, dtype=model.dtype, rngs=rngs)
        dims = [model.embed_dim * 2**i for i in range(len(model.depths))]
        rates = np.linspace(0, model.drop_path, sum(model.depths)).tolist()
        first_block = [0, *accumulate(model.depths)]
        self.patch_embed = PatchEmbed(model.patch**2 * model.in_channels, dims[0], **shared)
        stages = []
        for i, (dim, heads) in enumerate(zip(dims, model.num_heads, strict=True)):
            window = min(model.window, *grid.shape(i))
            blocks = [
                SwinBlock(dim, window, heads, mlp_ratio=model.mlp_ratio, drop_path=rate, **shared)
                for rate in rates[first_block[i] : first_block[i + 1]]
            ]
            downsample = PatchMerging(dim, **shared) if i + 1 < len(dims) else None
            stages.append(SwinStage(blocks, downsample, model.remat))
        self.stages = nnx.List(stages)
        self.norm = LayerNorm(dims[-1], epsilon=model.norm_epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], windows: Windows, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b units latent"], tuple[Float[Array, "b _ _"], ...]]:
        """Embedded patches -> the normed tokens of the last stage, and every stage's tokens before its merging."""
        outputs = []
        for i, (stage, groupings) in enumerate(zip(self.stages, windows, strict=True)):
            keys = None if key is None else jax.random.split(jax.random.fold_in(key, i), len(stage.blocks))
            x = stage(x, groupings, keys)
            outputs.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return self.norm(x), tuple(outputs)
