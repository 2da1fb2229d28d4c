"""Changes that the study makes and no setting can: to the places of the visible latents, and to SimMIM's loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp

from greenjax.models.decoder import Decoder
from greenjax.models.mim import SimMIM, normalised


@contextmanager
def swapped_latents() -> Iterator[None]:
    """Inside the block, visible latents stand at each other's places, as in the paper's released code.

    Its encoder returns the visible units in raster order; its decoder takes them to be in the order in which they were
    drawn: the latent of the i-th visible unit gets the position of the i-th drawn one. Here the order is drawn from the
    latents themselves. They differ from update to update, so it is a new one even where a mask comes again.
    """
    own = Decoder.__call__

    def swapped(self: Decoder, latent: Any, visible_units: Any, masked_units: Any) -> Any:
        visible, total = jnp.asarray(visible_units), jax.lax.stop_gradient(latent).sum(dtype=jnp.float32)
        seed = jax.lax.bitcast_convert_type(total, jnp.uint32)
        order = jax.random.permutation(jax.random.key(seed), len(visible))
        return own(self, latent, visible[order], masked_units)

    with patch.object(Decoder, "__call__", swapped):
        yield


@contextmanager
def loss_of_green() -> Iterator[None]:
    """Inside the block, SimMIM has green's loss: the squared error of each patch's normalised pixels.

    Its own is the absolute error of plain pixels; the best constant in a run's log still goes by that one.
    """
    own = SimMIM.losses

    def target(self: SimMIM, pixels: Any, there: Any) -> Any:
        return normalised(pixels, there)

    def losses(self: SimMIM, error: Any, *rest: Any) -> Any:
        return own(self, jnp.square, *rest)

    with patch.object(SimMIM, "target", target), patch.object(SimMIM, "losses", losses):
        yield
