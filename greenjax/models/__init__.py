"""Models: Flax NNX modules over visible tokens. They hold parameters only; plans and random keys are arguments.

Read in this order: attention (group window attention), swin, sparse_conv, twins, decoder, mim; layers holds what they
are made of.
"""

from flax import nnx
from ml_collections import ConfigDict

from greenjax.config import resolve
from greenjax.models.mim import GreenMIM, MaskedImageModel, Output, SimMIM, features

__all__ = ["GreenMIM", "MaskedImageModel", "Output", "SimMIM", "build", "features"]


def build(config: ConfigDict, seed: int = 0) -> MaskedImageModel:
    """A freshly initialised model for a configuration, resolved or not."""
    config = resolve(config)
    models = {"green": GreenMIM, "simmim": SimMIM}
    return models[config.method](config, rngs=nnx.Rngs(seed))
