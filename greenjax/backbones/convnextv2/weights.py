"""The names of ConvNeXt V2 in PyTorch, a table a layout."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.convnext.weights import BLOCK, layout, official, timm, transformers, transformers_settings
from greenjax.backbones.rules import Layout, Rule, head
from greenjax.backbones.transforms import LINEAR, NORM, Kind, one


def _on_maps(scale: str, bias: str) -> Kind:
    """The response norm as the official code and transformers keep it, [1, 1, 1, c]."""
    to_torch, from_torch = (lambda c, x: x[None, None, None]), (lambda c, x: x[0, 0, 0])
    return (one("scale", scale, to_torch, from_torch), one("bias", bias, to_torch, from_torch))


def _response_norm(name: str, kind: Kind) -> Rule:
    return Rule(f"{BLOCK}/response_norm", name, kind)


def _mlp_to_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    return x.T[:, :, None, None] if config.model.name in _ON_MAPS else x.T


def _mlp_from_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[:2]).T


_ON_MAPS = ("convnextv2_atto", "convnextv2_femto", "convnextv2_pico", "convnextv2_nano")
_MLP: Kind = (
    one("kernel", "weight", _mlp_to_torch, _mlp_from_torch),
    LINEAR[1],
)  # timm's small ones: 1 x 1 convolutions


def _folder(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    return transformers_settings(config, parts, "ConvNextV2")


LAYOUTS: dict[str, Layout] = {
    "convnext": layout(official(_response_norm("stages.{i}.{j}.grn", _on_maps("gamma", "beta"))), head=head("head")),
    "timm": layout(timm(_response_norm("stages.{i}.blocks.{j}.mlp.grn", NORM), mlp=_MLP), head=head("head.fc")),
    "hf": layout(
        transformers(_response_norm("encoder.stages.{i}.layers.{j}.grn", _on_maps("weight", "bias"))),
        model_prefix="convnextv2.",
        head=head("classifier"),
        folder=_folder,
    ),
}
