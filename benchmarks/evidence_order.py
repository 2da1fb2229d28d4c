"""The decoder of the paper's released code: visible latents stand at each other's places.

Its encoder returns the visible units in raster order; its decoder takes them to be in the order in which they were
drawn. So the latent of the i-th visible unit gets the position of the i-th drawn one, in another order at every draw.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp

from greenjax.models.decoder import Decoder


@contextmanager
def swapped_latents() -> Iterator[None]:
    """Inside the block, decoders get the visible latents in an order drawn from the latents themselves.

    They differ from update to update, so the order is a new one even where a mask comes again.
    """
    own = Decoder.__call__

    def swapped(self: Decoder, latent: Any, visible_units: Any, masked_units: Any) -> Any:
        visible, total = jnp.asarray(visible_units), jax.lax.stop_gradient(latent).sum(dtype=jnp.float32)
        seed = jax.lax.bitcast_convert_type(total, jnp.uint32)
        order = jax.random.permutation(jax.random.key(seed), len(visible))
        return own(self, latent, visible[order], masked_units)

    with patch.object(Decoder, "__call__", swapped):
        yield
