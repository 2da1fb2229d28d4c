"""The names of PVT v2 in PyTorch, a table a layout."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.pvt_v2.family import KERNEL, PATCH
from greenjax.backbones.rules import Fault, Layout, Rule, Table, head
from greenjax.backbones.settings import by_stage
from greenjax.backbones.transforms import CONV, LINEAR, NORM, Arrays, Kind, Part, joined
from greenjax.backbones.twins.family import EPSILON
from greenjax.errors import InputError

STAGE, BLOCK = "encoder/stages/{i}", "encoder/stages/{i}/blocks/{j}"


def _blocks(block: str, conv: str) -> Table:
    """Blocks named `block` in timm and in the official code; `conv`: the convolution in their MLP."""
    return (
        Rule(f"{BLOCK}/norm1", f"{block}.norm1", NORM),
        Rule(f"{BLOCK}/attn/q", f"{block}.attn.q", LINEAR),
        Rule(f"{BLOCK}/attn/kv", f"{block}.attn.kv", LINEAR),
        Rule(f"{BLOCK}/attn/sr", f"{block}.attn.sr", CONV),
        Rule(f"{BLOCK}/attn/sr/norm", f"{block}.attn.norm", NORM),
        Rule(f"{BLOCK}/attn/proj", f"{block}.attn.proj", LINEAR),
        Rule(f"{BLOCK}/norm2", f"{block}.norm2", NORM),
        Rule(f"{BLOCK}/mlp/fc1", f"{block}.mlp.fc1", LINEAR),
        Rule(f"{BLOCK}/mlp/conv", f"{block}.mlp.{conv}", CONV),
        Rule(f"{BLOCK}/mlp/fc2", f"{block}.mlp.fc2", LINEAR),
    )


# whai362/PVT, which counts stages from 1.
_OFFICIAL: Table = (
    Rule("encoder/patch_embed/proj", "patch_embed1.proj", CONV),
    Rule("encoder/patch_embed/norm", "patch_embed1.norm", NORM),
    Rule(f"{STAGE}/patch_embed/proj", "patch_embed{next}.proj", CONV),
    Rule(f"{STAGE}/patch_embed/norm", "patch_embed{next}.norm", NORM),
    *_blocks("block{next}.{j}", "dwconv.dwconv"),
    Rule(f"{STAGE}/norm", "norm{next}", NORM),
    Rule("encoder/norm", "norm{stages}", NORM),
)

_TIMM: Table = (
    Rule("encoder/patch_embed/proj", "patch_embed.proj", CONV),
    Rule("encoder/patch_embed/norm", "patch_embed.norm", NORM),
    Rule(f"{STAGE}/patch_embed/proj", "stages.{i}.downsample.proj", CONV),
    Rule(f"{STAGE}/patch_embed/norm", "stages.{i}.downsample.norm", NORM),
    *_blocks("stages.{i}.blocks.{j}", "dwconv"),
    Rule(f"{STAGE}/norm", "stages.{i}.norm", NORM),
    Rule("encoder/norm", "stages.{last}.norm", NORM),
)


def _halves(config: ConfigDict, x: np.ndarray) -> Arrays:
    return tuple(part.T for part in np.split(x, 2, axis=-1))


# transformers keeps the projections to keys and values apart.
_SPLIT_KV: Kind = tuple(
    Part((f"kv/{ours}",), tuple(f"{name}.{theirs}" for name in ("key", "value")), _halves, joined)
    for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
)

_HF: Table = (
    Rule("encoder/patch_embed/proj", "encoder.layers.0.patch_embedding.proj", CONV),
    Rule("encoder/patch_embed/norm", "encoder.layers.0.patch_embedding.layer_norm", NORM),
    Rule(f"{STAGE}/patch_embed/proj", "encoder.layers.{i}.patch_embedding.proj", CONV),
    Rule(f"{STAGE}/patch_embed/norm", "encoder.layers.{i}.patch_embedding.layer_norm", NORM),
    Rule(f"{BLOCK}/norm1", "encoder.layers.{i}.blocks.{j}.layer_norm_1", NORM),
    Rule(f"{BLOCK}/attn/q", "encoder.layers.{i}.blocks.{j}.attention.query", LINEAR),
    Rule(f"{BLOCK}/attn", "encoder.layers.{i}.blocks.{j}.attention", _SPLIT_KV),
    Rule(f"{BLOCK}/attn/sr", "encoder.layers.{i}.blocks.{j}.attention.spatial_reduction", CONV),
    Rule(f"{BLOCK}/attn/sr/norm", "encoder.layers.{i}.blocks.{j}.attention.layer_norm", NORM),
    Rule(f"{BLOCK}/attn/proj", "encoder.layers.{i}.blocks.{j}.attention.proj", LINEAR),
    Rule(f"{BLOCK}/norm2", "encoder.layers.{i}.blocks.{j}.layer_norm_2", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "encoder.layers.{i}.blocks.{j}.mlp.dense1", LINEAR),
    Rule(f"{BLOCK}/mlp/conv", "encoder.layers.{i}.blocks.{j}.mlp.dwconv.dwconv", CONV),
    Rule(f"{BLOCK}/mlp/fc2", "encoder.layers.{i}.blocks.{j}.mlp.dense2", LINEAR),
    Rule(f"{STAGE}/norm", "encoder.layers.{i}.layer_norm", NORM),
    Rule("encoder/norm", "encoder.layers.{last}.layer_norm", NORM),
)


def _folder(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    """config.json of a PvtV2Model or PvtV2ForImageClassification; PvtV2Backbone opens the folder, too.

    Raises InputError for what PvtV2Config cannot say.
    """
    model, stages = config.model, len(config.model.depths)
    ratios = by_stage(model.mlp_ratio, stages)
    if any(ratio != round(ratio) for ratio in ratios):
        raise InputError(f"model.mlp_ratio is {model.mlp_ratio}: expected whole numbers with layout 'hf'")
    return {
        "architectures": ["PvtV2ForImageClassification" if "head" in parts else "PvtV2Model"],
        "model_type": "pvt_v2",
        "image_size": list(config.image_size),
        "num_channels": model.in_channels,
        "num_encoder_blocks": stages,
        "hidden_sizes": list(model.embed_dims),
        "depths": list(model.depths),
        "num_attention_heads": list(model.num_heads),
        "mlp_ratios": [round(ratio) for ratio in ratios],
        "sr_ratios": list(model.sr_ratios),
        "patch_sizes": [2 * model.patch - 1, *[KERNEL] * (stages - 1)],
        "strides": [model.patch, *[2] * (stages - 1)],
        "qkv_bias": True,
        "linear_attention": False,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_epsilon,
        "drop_path_rate": model.drop_path,
        "dtype": "float32",
    }


def _one_patch(config: ConfigDict) -> Iterator[Fault]:
    """The kernel and the stride of the first convolution are no arguments in these libraries."""
    if config.model.patch != PATCH:
        yield Fault(f"model.patch is {config.model.patch}", f": the library has {PATCH} alone", "refused")


def _one_epsilon(config: ConfigDict) -> Iterator[Fault]:
    if config.model.norm_epsilon != EPSILON:
        because = f"norms behind convolutions have epsilon {EPSILON:g}, others {config.model.norm_epsilon:g}"
        yield Fault(because, ", the library the latter for all", "differs")


LAYOUTS: dict[str, Layout] = {
    "pvt_v2": Layout(_OFFICIAL, head=head("head"), epsilon=1e-6, faults=_one_patch),
    "timm": Layout(_TIMM, head=head("head"), epsilon=1e-6, faults=_one_patch),
    "hf": Layout(
        _HF, model_prefix="pvt_v2.", head=head("classifier"), epsilon=1e-6, faults=_one_epsilon, folder=_folder
    ),
}
