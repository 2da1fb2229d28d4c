"""ViT (arXiv 2010.11929) as an encoder of visible tokens; dense when every unit is visible.

A mask unit is a patch. All visible tokens, and the class token, attend to each other, so nothing is grouped or padded.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from greenjax.backbones.attention import SelfAttention
from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.initial import small_normal
from greenjax.backbones.layers import (
    Block,
    LayerNorm,
    PatchEmbed,
    block_keys,
    checkpointed,
    drop_path_rates,
    hidden_channels,
    traced_once,
)
from greenjax.backbones.positions import sine_cosine_positions
from greenjax.planning import Plan


class Stage(nnx.Module):
    """The blocks."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model, (dim,) = config.model, stage_channels(config)
        options = dict(dtype=model.dtype, rngs=rngs)
        (hidden,), (rates,) = hidden_channels(model.mlp_ratio, (dim,)), drop_path_rates(model.drop_path, model.depths)
        self.blocks = nnx.List(
            Block(
                SelfAttention(dim, model.num_heads[0], **options),
                dim,
                hidden,
                drop_path=rate,
                epsilon=model.norm_epsilon,
                **options,
            )
            for rate in rates
        )


class Encoder(nnx.Module):
    """Patches, positions and a class token, blocks, norm.

    PyTorch's ViTs add a learnt position to the class token; here `class_token` is the sum. Positions are a parameter
    even where they are fixed, because a file may hold other ones than `sine_cosine_positions`.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model, (dim,), (rows, columns) = config.model, stage_channels(config), token_grid(config).units
        self.remat, self.fixed = model.remat, model.positions == "sincos"
        options = dict(dtype=model.dtype, rngs=rngs)
        self.patch_embed = PatchEmbed(model.patch, model.in_channels, dim, epsilon=None, **options)
        if self.fixed:
            positions = sine_cosine_positions(rows, columns, dim).reshape(rows, columns, dim)
        else:
            positions = small_normal(rngs.params(), (rows, columns, dim), jnp.float32)
        self.positions = nnx.Param(positions)
        token = small_normal(rngs.params(), (dim,), jnp.float32) if model.class_token else None
        self.class_token = None if token is None else nnx.Param(token)
        self.stages = nnx.List([Stage(config, rngs=rngs)])
        self.norm = LayerNorm(dim, epsilon=model.norm_epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], plan: Plan, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b tokens c"], tuple[Float[Array, "b n c"], ...]]:
        """Embedded patches -> their normed tokens and the normed class token behind them; the tokens un-normed."""
        b, n, c = x.shape
        positions = self.positions[...].reshape(-1, c)
        if self.fixed:
            positions = jax.lax.stop_gradient(positions)
        x = x + jnp.take(positions, plan.visible_units, axis=0, unique_indices=True).astype(x.dtype)[None]
        if self.class_token is not None:
            token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (b, 1, c))
            x = jnp.concatenate([x, token], axis=1)
        run, (stage,) = checkpointed if self.remat else traced_once, self.stages
        for block, block_key in zip(stage.blocks, block_keys(key, 0, len(stage.blocks)), strict=True):
            x = run(block)(x, None, block_key)
        return self.norm(x), (x[:, :n],)
