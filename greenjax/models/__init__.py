"""Models: Flax NNX modules over visible tokens. They hold parameters only; plans and random keys are arguments.

Read in this order: attention (group window attention; fused_attention has it as one kernel), swin, sparse_conv, twins,
backbone (images in, encoder), decoder, mim, classifier; layers holds what they are made of.
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from greenjax.backbones.layers import Keys
from greenjax.models.backbone import Backbone, features
from greenjax.models.classifier import Classifier
from greenjax.models.mim import GreenMIM, MaskedImageModel, Output, SimMIM

__all__ = ["Backbone", "Classifier", "GreenMIM", "MaskedImageModel", "Output", "SimMIM", "build", "features"]


def build(config: ConfigDict, seed: int = 0) -> Any:
    """A freshly initialised model for a resolved configuration.

    task "pretrain" gives a masked image model by `method`, any other task a Classifier.
    """
    masked = {"green": GreenMIM, "simmim": SimMIM}
    model = masked[config.method] if config.task == "pretrain" else Classifier
    return jax.device_put(model(config, rngs=Keys(seed)))  # constants are still NumPy's: layers.py
