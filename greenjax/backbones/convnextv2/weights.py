"""The names of ConvNeXt V2 in PyTorch, a table a layout."""

import math
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.backbones.convnext.weights import (
    BLOCK,
    STAGE,
    layout,
    official,
    timm,
    transformers,
    transformers_settings,
)
from greenjax.backbones.rules import Layout, Rule, Table, head
from greenjax.backbones.transforms import LINEAR, NORM, PATCHES, Kind, Part, one


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


def _taps_to_torch(config: ConfigDict, x: Float[np.ndarray, "row col 1 c"]) -> Float[np.ndarray, "taps c"]:
    return rearrange(x, "row col 1 c -> (col row) c")


def _taps_from_torch(config: ConfigDict, x: Float[np.ndarray, "taps c"]) -> Float[np.ndarray, "row col 1 c"]:
    return rearrange(x, "(col row) c -> row col 1 c", col=math.isqrt(len(x)))


def _in_a_row(ours: str, theirs: str) -> Part:
    """An array [c] as FCMAE's sparse modules keep it, [1, c]."""
    return one(ours, theirs, lambda c, x: x[None], lambda c, x: x[0])


_ROW = _in_a_row("bias", "bias")
# Sparse kernels have one axis for their positions, column by column, as ours of 2 x 2 tokens have.
_SPARSE_DEPTHWISE: Kind = (one("kernel", "kernel", _taps_to_torch, _taps_from_torch), _ROW)
_SPARSE_DOWNSAMPLING: Kind = (
    one(
        "kernel",
        "kernel",
        lambda c, x: rearrange(x, "(four c) d -> four c d", four=4),
        lambda c, x: rearrange(x, "four c d -> (four c) d"),
    ),
    _ROW,
)

# The encoder of FCMAE's pre-training in facebookresearch/ConvNeXt-V2, which has no last norm.
_FCMAE: Table = (
    Rule("encoder/patch_embed/proj", "downsample_layers.0.0", PATCHES),
    Rule("encoder/patch_embed/norm", "downsample_layers.0.1", NORM),
    Rule(f"{STAGE}/downsample/norm", "downsample_layers.{i}.0.ln", NORM),
    Rule(f"{STAGE}/downsample/conv", "downsample_layers.{i}.1", _SPARSE_DOWNSAMPLING),
    Rule(f"{BLOCK}/conv", "stages.{i}.{j}.dwconv", _SPARSE_DEPTHWISE),
    Rule(f"{BLOCK}/norm", "stages.{i}.{j}.norm.ln", NORM),
    Rule(f"{BLOCK}/fc1", "stages.{i}.{j}.pwconv1.linear", LINEAR),
    Rule(f"{BLOCK}/response_norm", "stages.{i}.{j}.grn", (_in_a_row("scale", "gamma"), _in_a_row("bias", "beta"))),
    Rule(f"{BLOCK}/fc2", "stages.{i}.{j}.pwconv2.linear", LINEAR),
)


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
    "fcmae": layout(_FCMAE, lacking=("encoder/norm",)),
}
