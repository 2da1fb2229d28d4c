"""The decoder of green MIM: plain transformer blocks over visible tokens and mask tokens (paper, section 4.1)."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from greenjax.backbones.attention import SelfAttention
from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.initial import small_normal, token_normal
from greenjax.backbones.layers import Block, LayerNorm, linear
from greenjax.backbones.positions import sine_cosine_positions


class Decoder(nnx.Module):
    """Predicts the pixels of every token of the last stage, in most models one a unit, from the visible latents.

    Mask tokens follow the visible tokens: attention does not depend on the order, and positions tell tokens apart, so
    nothing is scattered. Tokens are unit-major.
    """

    def __init__(self, config: ConfigDict, outputs: int, *, rngs: nnx.Rngs):
        dim, heads, epsilon = config.decoder.dim, config.decoder.num_heads, config.model.norm_epsilon
        channels, self.grid, self.dim = stage_channels(config), token_grid(config), dim
        options = dict(dtype=config.model.dtype, rngs=rngs)
        self.embed = linear(channels[-1], dim, **options)
        self.mask_token = nnx.Param(token_normal(rngs.params(), (dim,), jnp.float32))
        self.blocks = nnx.List(
            Block(SelfAttention(dim, heads, **options), dim, 4 * dim, drop_path=0.0, epsilon=epsilon, **options)
            for _ in range(config.decoder.depth)
        )
        self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.head = linear(dim, outputs, **options)
        shape, learned = (*self.grid.shape(-1), dim), config.decoder.positions == "learned"
        self.positions = nnx.Param(small_normal(rngs.params(), shape, jnp.float32)) if learned else None
        members = [(self.grid.side(i) // self.grid.side(-1)) ** 2 for i in range(len(channels))]
        inputs = [count * width for count, width in zip(members, channels) if count > 1 and config.decoder.fusion]
        self.fusion = nnx.List(linear(each, channels[-1], **options) for each in inputs)

    def fused(self, stages: tuple[Float[Array, "b _ _"], ...]) -> Float[Array, "b n c"]:
        """The sum of the stages on the grid of the last: finer ones by convolutions with kernel = stride, the last as
        it is. Source: Hiera (arXiv 2306.00989), section 4, as transformers defines it."""
        last = stages[-1]
        return sum((conv(x.reshape(*last.shape[:2], -1)) for conv, x in zip(self.fusion, stages)), last)

    def __call__(
        self,
        latent: Float[Array, "b tokens latent"],
        visible_units: Int[Array | np.ndarray, " v"],
        masked_units: Int[Array | np.ndarray, " w"],
    ) -> tuple[Float[Array, "b n out"], Float[Array, "b m out"]]:
        """Predicted pixels of the tokens of the visible and of the masked units, in the order of the indices.

        Tokens behind the visible units', such as a class token, attend without a position.
        """
        positions = self._positions().astype(latent.dtype)
        at_visible, at_masked = (positions[units].reshape(-1, self.dim) for units in (visible_units, masked_units))
        b, v, w = len(latent), len(at_visible), len(at_masked)
        mask_tokens = self.mask_token[...].astype(latent.dtype)[None] + at_masked
        mask_tokens = jnp.broadcast_to(mask_tokens[None], (b, *mask_tokens.shape))
        x = self.embed(latent)
        x = jnp.concatenate([x[:, :v] + at_visible[None], mask_tokens, x[:, v:]], axis=1)
        for block in self.blocks:
            x = block(x, None, None)
        x = self.norm(x)
        # Training uses the second result only, and the compiler drops the first call.
        return self.head(x[:, :v]), self.head(x[:, v : v + w])

    def _positions(self) -> Float[Array, "u t c"]:
        """By unit, and by place inside the unit."""
        raster = self.grid.raster(-1)
        if self.positions is None:
            return jnp.asarray(sine_cosine_positions(*self.grid.shape(-1), self.dim)[raster])
        return self.positions[...].reshape(-1, self.dim)[raster]
