"""The names of ConvNeXt in PyTorch, a table a layout. V2 takes the same tables."""

from functools import partial
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.backbones.rules import Layout, Rule, Table, head
from greenjax.backbones.transforms import CONV, LINEAR, NORM, PATCHES, Kind, one, same
from greenjax.errors import InputError

STAGE, BLOCK = "encoder/stages/{i}", "encoder/stages/{i}/blocks/{j}"


def _downsampling_to_torch(config: ConfigDict, x: Float[np.ndarray, "four_c d"]) -> Float[np.ndarray, "d c 2 2"]:
    return rearrange(x, "(col row c) d -> d c row col", row=2, col=2)


def _downsampling_from_torch(config: ConfigDict, x: Float[np.ndarray, "d c 2 2"]) -> Float[np.ndarray, "four_c d"]:
    return rearrange(x, "d c row col -> (col row c) d")


_DOWNSAMPLING: Kind = (one("kernel", "weight", _downsampling_to_torch, _downsampling_from_torch), LINEAR[1])


def timm(*own: Rule, mlp: Kind = LINEAR) -> Table:
    """timm's names. `own`: rules for modules that only this version has. `mlp`: how the MLP's arrays change."""
    return (
        Rule("encoder/patch_embed/proj", "stem.0", PATCHES),
        Rule("encoder/patch_embed/norm", "stem.1", NORM),
        Rule(f"{STAGE}/downsample/norm", "stages.{i}.downsample.0", NORM),
        Rule(f"{STAGE}/downsample/conv", "stages.{i}.downsample.1", _DOWNSAMPLING),
        *own,
        Rule(f"{BLOCK}/conv", "stages.{i}.blocks.{j}.conv_dw", CONV),
        Rule(f"{BLOCK}/norm", "stages.{i}.blocks.{j}.norm", NORM),
        Rule(f"{BLOCK}/fc1", "stages.{i}.blocks.{j}.mlp.fc1", mlp),
        Rule(f"{BLOCK}/fc2", "stages.{i}.blocks.{j}.mlp.fc2", mlp),
        Rule("encoder/norm", "head.norm", NORM),
    )


def official(*own: Rule) -> Table:
    """The names of facebookresearch/ConvNeXt and ConvNeXt-V2. `own`: as in `timm`."""
    return (
        Rule("encoder/patch_embed/proj", "downsample_layers.0.0", PATCHES),
        Rule("encoder/patch_embed/norm", "downsample_layers.0.1", NORM),
        Rule(f"{STAGE}/downsample/norm", "downsample_layers.{i}.0", NORM),
        Rule(f"{STAGE}/downsample/conv", "downsample_layers.{i}.1", _DOWNSAMPLING),
        *own,
        Rule(f"{BLOCK}/conv", "stages.{i}.{j}.dwconv", CONV),
        Rule(f"{BLOCK}/norm", "stages.{i}.{j}.norm", NORM),
        Rule(f"{BLOCK}/fc1", "stages.{i}.{j}.pwconv1", LINEAR),
        Rule(f"{BLOCK}/fc2", "stages.{i}.{j}.pwconv2", LINEAR),
        Rule("encoder/norm", "norm", NORM),
    )


def transformers(*own: Rule) -> Table:
    """The names of transformers. `own`: as in `timm`."""
    return (
        Rule("encoder/patch_embed/proj", "embeddings.patch_embeddings", PATCHES),
        Rule("encoder/patch_embed/norm", "embeddings.layernorm", NORM),
        Rule(f"{STAGE}/downsample/norm", "encoder.stages.{i}.downsampling_layer.0", NORM),
        Rule(f"{STAGE}/downsample/conv", "encoder.stages.{i}.downsampling_layer.1", _DOWNSAMPLING),
        *own,
        Rule(f"{BLOCK}/conv", "encoder.stages.{i}.layers.{j}.dwconv", CONV),
        Rule(f"{BLOCK}/norm", "encoder.stages.{i}.layers.{j}.layernorm", NORM),
        Rule(f"{BLOCK}/fc1", "encoder.stages.{i}.layers.{j}.pwconv1", LINEAR),
        Rule(f"{BLOCK}/fc2", "encoder.stages.{i}.layers.{j}.pwconv2", LINEAR),
        Rule("encoder/norm", "layernorm", NORM),
    )


def transformers_settings(config: ConfigDict, parts: set[str], name: str) -> dict[str, Any]:
    """config.json of a model of transformers; `name` begins the name of its class.

    Raises InputError for what ConvNextConfig cannot say.
    """
    model = config.model
    if model.mlp_ratio not in (4.0, (4.0,) * len(model.depths)):
        raise InputError(f"model.mlp_ratio is {model.mlp_ratio}: expected 4 with layout 'hf'")
    return {
        "architectures": [name + ("ForImageClassification" if "head" in parts else "Model")],
        "model_type": name.lower(),
        "image_size": config.image_size[0],
        "patch_size": model.patch,
        "num_channels": model.in_channels,
        "num_stages": len(model.depths),
        "hidden_sizes": list(model.embed_dims),
        "depths": list(model.depths),
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_epsilon,
        "drop_path_rate": model.drop_path,
        "dtype": "float32",
    }


def _folder(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    return transformers_settings(config, parts, "ConvNext")


def _scale(block: str, name: str) -> Rule:
    return Rule(BLOCK, block, (one("layer_scale", name, same, same),))


layout = partial(Layout, epsilon=1e-6)

LAYOUTS: dict[str, Layout] = {
    "convnext": layout(official(_scale("stages.{i}.{j}", "gamma")), head=head("head")),
    "timm": layout(timm(_scale("stages.{i}.blocks.{j}", "gamma")), head=head("head.fc")),
    "hf": layout(
        transformers(_scale("encoder.stages.{i}.layers.{j}", "layer_scale_parameter")),
        model_prefix="convnext.",
        head=head("classifier"),
        folder=_folder,
    ),
}
