"""The decoder of green MIM: plain transformer blocks over visible tokens and mask tokens (paper, section 4.1)."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from greenjax.backbones.attention import SelfAttention
from greenjax.backbones.initial import token_normal
from greenjax.backbones.layers import Block, LayerNorm, linear
from greenjax.backbones.positions import sine_cosine_positions


class Decoder(nnx.Module):
    """Predicts the pixels of every unit from the latents of the visible ones.

    Mask tokens follow the visible tokens: attention does not depend on the order, and position codes tell tokens
    apart, so nothing is scattered.
    """

    def __init__(self, config: ConfigDict, latent_dim: int, units: tuple[int, int], outputs: int, *, rngs: nnx.Rngs):
        dim, epsilon, dtype = config.decoder.dim, config.model.norm_epsilon, config.model.dtype
        self.units, self.dim = units, dim
        self.embed = linear(latent_dim, dim, dtype=dtype, rngs=rngs)
        self.mask_token = nnx.Param(token_normal(rngs.params(), (dim,), jnp.float32))
        self.blocks = nnx.List(
            Block(
                SelfAttention(dim, config.decoder.num_heads, dtype=dtype, rngs=rngs),
                dim,
                4 * dim,
                drop_path=0.0,
                epsilon=epsilon,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(config.decoder.depth)
        )
        self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.head = linear(dim, outputs, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        latent: Float[Array, "b tokens latent"],
        visible_units: Int[Array | np.ndarray, " v"],
        masked_units: Int[Array | np.ndarray, " w"],
    ) -> tuple[Float[Array, "b v out"], Float[Array, "b w out"]]:
        """Predicted pixels of the visible and of the masked units, in the order of the indices.

        Tokens behind the visible units', such as a class token, attend without a position.
        """
        positions = jnp.asarray(sine_cosine_positions(*self.units, self.dim)).astype(latent.dtype)
        b, v, w = len(latent), len(visible_units), len(masked_units)
        mask_tokens = self.mask_token[...].astype(latent.dtype)[None] + positions[masked_units]
        mask_tokens = jnp.broadcast_to(mask_tokens[None], (b, *mask_tokens.shape))
        x = self.embed(latent)
        x = jnp.concatenate([x[:, :v] + positions[visible_units][None], mask_tokens, x[:, v:]], axis=1)
        for block in self.blocks:
            x = block(x, None, None)
        x = self.norm(x)
        # Training uses the second result only, and the compiler drops the first call.
        return self.head(x[:, :v]), self.head(x[:, v : v + w])
