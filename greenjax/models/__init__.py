"""Models: Flax NNX modules over visible tokens. They hold parameters only; plans and random keys are arguments.

Read in this order: backbone (from images to the encoder), decoder, mim (masked image models), classifier, detection
(Mask R-CNN).
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from greenjax.backbones.layers import Keys
from greenjax.errors import InputError
from greenjax.models.backbone import Backbone, features
from greenjax.models.classifier import Classifier
from greenjax.models.detection import Detections, Detector
from greenjax.models.mim import GreenMIM, MaskedImageModel, Output, SimMIM

__all__ = [
    "Backbone",
    "Classifier",
    "Detections",
    "Detector",
    "GreenMIM",
    "MaskedImageModel",
    "Output",
    "SimMIM",
    "build",
    "features",
]


def build(config: ConfigDict, seed: int = 0) -> Any:
    """A freshly initialised model for a resolved configuration; InputError for another.

    task "pretrain" gives a masked image model by `method`, "detect" a Detector, any other task a Classifier.
    """
    if not config.is_locked:
        raise InputError("config is not resolved: expected one of greenjax.load_config or greenjax.resolve")
    masked = {"green": GreenMIM, "simmim": SimMIM}
    model = masked[config.method] if config.task == "pretrain" else {"detect": Detector}.get(config.task, Classifier)
    return jax.device_put(model(config, rngs=Keys(seed)))  # initial constants are NumPy arrays: layers.py
