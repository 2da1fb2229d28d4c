"""The names of Swin in PyTorch, a table a layout, and what each library does with its stage."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.layers import transformers_ratio
from greenjax.backbones.rules import DETECTOR, MAE_DECODER, Fault, Layout, Resizing, Rule, Table, head, simmim_decoder
from greenjax.backbones.swin import position_bias
from greenjax.backbones.swin.position_bias import position_buffers
from greenjax.backbones.transforms import (
    LINEAR,
    NORM,
    PATCHES,
    POSITION_BIAS,
    SPLIT_QKV,
    merge_norm,
    merge_reduction,
)
from greenjax.backbones.windows import (
    WindowedStage,
    padding_attends,
    small_grids_have_one_window,
    window_faults,
    windows_are_whole,
    windows_do_not_shrink,
    windows_shrink_on_each_axis,
)
from greenjax.errors import InputError

STAGE, BLOCK = "encoder/stages/{i}", "encoder/stages/{i}/blocks/{j}"


def _official(merge_order: str = "swin", merging: str = "layers.{i}.downsample") -> Table:
    """microsoft/Swin-Transformer. timm >= 0.9 has its names, and merges at the start of the next stage."""
    return (
        Rule("encoder/patch_embed/proj", "patch_embed.proj", PATCHES),
        Rule("encoder/patch_embed/norm", "patch_embed.norm", NORM),
        Rule(f"{BLOCK}/norm1", "layers.{i}.blocks.{j}.norm1", NORM),
        Rule(f"{BLOCK}/attn", "layers.{i}.blocks.{j}.attn", POSITION_BIAS),
        Rule(f"{BLOCK}/attn/qkv", "layers.{i}.blocks.{j}.attn.qkv", LINEAR),
        Rule(f"{BLOCK}/attn/proj", "layers.{i}.blocks.{j}.attn.proj", LINEAR),
        Rule(f"{BLOCK}/norm2", "layers.{i}.blocks.{j}.norm2", NORM),
        Rule(f"{BLOCK}/mlp/fc1", "layers.{i}.blocks.{j}.mlp.fc1", LINEAR),
        Rule(f"{BLOCK}/mlp/fc2", "layers.{i}.blocks.{j}.mlp.fc2", LINEAR),
        Rule(f"{STAGE}/downsample/norm", f"{merging}.norm", merge_norm(merge_order)),
        Rule(f"{STAGE}/downsample/reduction", f"{merging}.reduction", merge_reduction(merge_order)),
        Rule("encoder/norm", "norm", NORM),
    )


_TORCHVISION: Table = (
    Rule("encoder/patch_embed/proj", "features.0.0", PATCHES),
    Rule("encoder/patch_embed/norm", "features.0.2", NORM),
    Rule(f"{BLOCK}/norm1", "features.{odd}.{j}.norm1", NORM),
    Rule(f"{BLOCK}/attn", "features.{odd}.{j}.attn", POSITION_BIAS),
    Rule(f"{BLOCK}/attn/qkv", "features.{odd}.{j}.attn.qkv", LINEAR),
    Rule(f"{BLOCK}/attn/proj", "features.{odd}.{j}.attn.proj", LINEAR),
    Rule(f"{BLOCK}/norm2", "features.{odd}.{j}.norm2", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "features.{odd}.{j}.mlp.0", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "features.{odd}.{j}.mlp.3", LINEAR),
    Rule(f"{STAGE}/downsample/norm", "features.{even}.norm", merge_norm("swin")),
    Rule(f"{STAGE}/downsample/reduction", "features.{even}.reduction", merge_reduction("swin")),
    Rule("encoder/norm", "norm", NORM),
)

# mmdetection unfolds 2 x 2 blocks, channels first, and has a norm for every stage that it puts out.
_MMDET: Table = (
    Rule("encoder/patch_embed/proj", "patch_embed.projection", PATCHES),
    Rule("encoder/patch_embed/norm", "patch_embed.norm", NORM),
    Rule(f"{BLOCK}/norm1", "stages.{i}.blocks.{j}.norm1", NORM),
    Rule(f"{BLOCK}/attn", "stages.{i}.blocks.{j}.attn.w_msa", POSITION_BIAS),
    Rule(f"{BLOCK}/attn/qkv", "stages.{i}.blocks.{j}.attn.w_msa.qkv", LINEAR),
    Rule(f"{BLOCK}/attn/proj", "stages.{i}.blocks.{j}.attn.w_msa.proj", LINEAR),
    Rule(f"{BLOCK}/norm2", "stages.{i}.blocks.{j}.norm2", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "stages.{i}.blocks.{j}.ffn.layers.0.0", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "stages.{i}.blocks.{j}.ffn.layers.1", LINEAR),
    Rule(f"{STAGE}/downsample/norm", "stages.{i}.downsample.norm", merge_norm("unfold")),
    Rule(f"{STAGE}/downsample/reduction", "stages.{i}.downsample.reduction", merge_reduction("unfold")),
    Rule("encoder/norm", "norm{last}", NORM),
)

# The names in saved files; in memory transformers 5 has others.
_HF: Table = (
    Rule("encoder/patch_embed/proj", "embeddings.patch_embeddings.projection", PATCHES),
    Rule("encoder/patch_embed/norm", "embeddings.norm", NORM),
    Rule(f"{BLOCK}/norm1", "encoder.layers.{i}.blocks.{j}.layernorm_before", NORM),
    Rule(f"{BLOCK}/attn", "encoder.layers.{i}.blocks.{j}.attention.self", POSITION_BIAS),
    Rule(f"{BLOCK}/attn", "encoder.layers.{i}.blocks.{j}.attention.self", SPLIT_QKV),
    Rule(f"{BLOCK}/attn/proj", "encoder.layers.{i}.blocks.{j}.attention.output.dense", LINEAR),
    Rule(f"{BLOCK}/norm2", "encoder.layers.{i}.blocks.{j}.layernorm_after", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "encoder.layers.{i}.blocks.{j}.intermediate.dense", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "encoder.layers.{i}.blocks.{j}.output.dense", LINEAR),
    Rule(f"{STAGE}/downsample/norm", "encoder.layers.{i}.downsample.norm", merge_norm("swin")),
    Rule(f"{STAGE}/downsample/reduction", "encoder.layers.{i}.downsample.reduction", merge_reduction("swin")),
    Rule("encoder/norm", "layernorm", NORM),
)


def _mmdet_fixed(config: ConfigDict) -> dict[str, np.ndarray]:
    """Buffers, and the norms of the stages before the last, which pre-training does not have: as they start there."""
    norms = {}
    for stage, dim in enumerate(stage_channels(config)[:-1]):
        norms |= {f"norm{stage}.weight": np.ones(dim, np.float32), f"norm{stage}.bias": np.zeros(dim, np.float32)}
    return position_buffers(config, "stages.{i}.blocks.{j}.attn.w_msa") | norms


def _one_window_shifts(stage: WindowedStage) -> Fault | None:
    """mmdetection shifts the windows of odd blocks though one window covers the grid."""
    if (any(stage.cut) and not stage.padded) or stage.depth < 2 or min(stage.rows, stage.columns) > stage.window:
        return None
    then = ": the library shifts it in odd blocks; on larger images it computes the same"
    return Fault(f"{stage}, no more than one window" + " on an axis" * stage.padded, then, "small images")


def _torchvision_faults(config: ConfigDict) -> Iterator[Fault]:
    if config.model.in_channels != 3:
        yield Fault(f"model.in_channels is {config.model.in_channels}", ": expected 3", "refused")
    yield from window_faults(windows_do_not_shrink, padding_attends)(config)


def _folder(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    """config.json of a SwinModel, SwinForImageClassification or SwinForMaskedImageModeling."""
    return transformers_settings(config, parts, "Swin", "swin")


def transformers_settings(config: ConfigDict, parts: set[str], name: str, model_type: str) -> dict[str, Any]:
    """The settings that transformers' Swin and Swin V2 share; `name` begins the names of its classes.

    Raises InputError for what they cannot say.
    """
    model = config.model
    ratio = transformers_ratio(model.mlp_ratio, stage_channels(config))
    rows, columns = config.image_size
    if "pixel_head" in parts and rows != columns:
        raise InputError(f"image_size is {config.image_size}: expected a square with layout 'hf' and a decoder")
    kinds = {"head": "ForImageClassification", "pixel_head": "ForMaskedImageModeling"}
    return {
        "architectures": [name + next((kind for part, kind in kinds.items() if part in parts), "Model")],
        "model_type": model_type,
        "image_size": rows if rows == columns else [rows, columns],
        "patch_size": model.patch,
        "num_channels": model.in_channels,
        "embed_dim": model.embed_dim,
        "depths": list(model.depths),
        "num_heads": list(model.num_heads),
        "window_size": model.window,
        "mlp_ratio": ratio,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": model.drop_path,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": model.norm_epsilon,
        "encoder_stride": token_grid(config).unit,
        "dtype": "float32",
    }


# Files of every library may hold these buffers; strict loading needs them in some.
_layout = partial(
    Layout, buffers={position_bias.INDEX: position_bias.check_index, position_bias.MASK: position_bias.check_mask}
)
_OFFICIAL = window_faults(windows_are_whole, small_grids_have_one_window)
_official_buffers = partial(position_buffers, block="layers.{i}.blocks.{j}.attn", masks=True)

LAYOUTS: dict[str, Layout] = {
    "swin": _layout(_official(), head=head("head"), fixed=_official_buffers, faults=_OFFICIAL),
    "timm": _layout(
        _official(merging="layers.{next}.downsample"),
        head=head("head.fc"),
        faults=window_faults(windows_shrink_on_each_axis, padding_attends),
    ),
    "hf": _layout(
        _HF,
        model_prefix="swin.",
        head=head("classifier"),
        decoders={"simmim": simmim_decoder("swin.embeddings.mask_token")},
        faults=window_faults(windows_do_not_shrink, padding_attends, small_grids_have_one_window),
        folder=_folder,
    ),
    "mmdet": _layout(
        _MMDET,
        fixed=_mmdet_fixed,
        faults=window_faults(windows_do_not_shrink, padding_attends, _one_window_shifts),
    ),
    "torchvision": _layout(
        _TORCHVISION,
        head=head("head"),
        detector=DETECTOR,
        detector_prefix="backbone.body.",
        fixed=partial(position_buffers, block="features.{odd}.{j}.attn", flat=True),
        faults=_torchvision_faults,
    ),
    "greenmim": _layout(
        _official(),
        prefix="encoder.",
        decoders={"green": MAE_DECODER},
        merge_orders={"raster": _official("raster")},
        epsilon=1e-6,
        sets_epsilon=True,
        faults=window_faults(padding_attends),
    ),
    "simmim": _layout(
        _official(),
        prefix="encoder.",
        decoders={"simmim": simmim_decoder("encoder.mask_token")},
        fixed=_official_buffers,
        faults=_OFFICIAL,
    ),
}

RESIZING = Resizing(
    position_bias.BIAS_TABLE, position_bias.can_resize, position_bias.resized_table, position_bias.resizing_line
)
