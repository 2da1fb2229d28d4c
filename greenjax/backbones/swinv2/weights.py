"""The names of Swin V2 in PyTorch, a table a layout, and what each library does with its stage."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Shaped
from ml_collections import ConfigDict

from greenjax.backbones.rules import Fault, Layout, Rule, Table, head, simmim_decoder
from greenjax.backbones.swin.weights import transformers_settings
from greenjax.backbones.transforms import (
    LINEAR,
    MATRIX,
    NORM,
    PATCHES,
    Kind,
    Part,
    joined,
    merge_reduction,
    one,
    same,
    thirds,
)
from greenjax.backbones.windows import (
    WindowedStage,
    padding_attends,
    small_grids_have_one_window,
    window_faults,
    windows_shrink_on_each_axis,
)

STAGE, BLOCK = "encoder/stages/{i}", "encoder/stages/{i}/blocks/{j}"


def _scale_to_torch(config: ConfigDict, x: Shaped[np.ndarray, " k"]) -> Shaped[np.ndarray, "k 1 1"]:
    return x[:, None, None]


def _scale_from_torch(config: ConfigDict, x: Shaped[np.ndarray, "k 1 1"]) -> Shaped[np.ndarray, " k"]:
    return x[:, 0, 0]


_SCALE = one("logit_scale", "logit_scale", _scale_to_torch, _scale_from_torch)
_BIASES: Kind = (_SCALE, one("q_bias", "q_bias", same, same), one("v_bias", "v_bias", same, same))
# transformers keeps the three projections apart; that of the keys has no bias.
_SPLIT: Kind = (
    _SCALE,
    Part(("qkv/kernel",), ("query.weight", "key.weight", "value.weight"), thirds, joined),
    one("q_bias", "query.bias", same, same),
    one("v_bias", "value.bias", same, same),
)


def _official(merging: str) -> Table:
    """microsoft/Swin-Transformer. timm has its names, and merges at the start of the next stage."""
    return (
        Rule("encoder/patch_embed/proj", "patch_embed.proj", PATCHES),
        Rule("encoder/patch_embed/norm", "patch_embed.norm", NORM),
        Rule(f"{BLOCK}/attn", "layers.{i}.blocks.{j}.attn", _BIASES),
        Rule(f"{BLOCK}/attn/qkv", "layers.{i}.blocks.{j}.attn.qkv", MATRIX),
        Rule(f"{BLOCK}/attn/position_mlp/fc1", "layers.{i}.blocks.{j}.attn.cpb_mlp.0", LINEAR),
        Rule(f"{BLOCK}/attn/position_mlp/fc2", "layers.{i}.blocks.{j}.attn.cpb_mlp.2", MATRIX),
        Rule(f"{BLOCK}/attn/proj", "layers.{i}.blocks.{j}.attn.proj", LINEAR),
        Rule(f"{BLOCK}/norm1", "layers.{i}.blocks.{j}.norm1", NORM),
        Rule(f"{BLOCK}/mlp/fc1", "layers.{i}.blocks.{j}.mlp.fc1", LINEAR),
        Rule(f"{BLOCK}/mlp/fc2", "layers.{i}.blocks.{j}.mlp.fc2", LINEAR),
        Rule(f"{BLOCK}/norm2", "layers.{i}.blocks.{j}.norm2", NORM),
        Rule(f"{STAGE}/downsample/reduction", f"{merging}.reduction", merge_reduction("swin")),
        Rule(f"{STAGE}/downsample/norm", f"{merging}.norm", NORM),
        Rule("encoder/norm", "norm", NORM),
    )


_HF: Table = (
    Rule("encoder/patch_embed/proj", "embeddings.patch_embeddings.projection", PATCHES),
    Rule("encoder/patch_embed/norm", "embeddings.norm", NORM),
    Rule(f"{BLOCK}/attn", "encoder.layers.{i}.blocks.{j}.attention.self", _SPLIT),
    Rule(
        f"{BLOCK}/attn/position_mlp/fc1",
        "encoder.layers.{i}.blocks.{j}.attention.self.continuous_position_bias_mlp.0",
        LINEAR,
    ),
    Rule(
        f"{BLOCK}/attn/position_mlp/fc2",
        "encoder.layers.{i}.blocks.{j}.attention.self.continuous_position_bias_mlp.2",
        MATRIX,
    ),
    Rule(f"{BLOCK}/attn/proj", "encoder.layers.{i}.blocks.{j}.attention.output.dense", LINEAR),
    Rule(f"{BLOCK}/norm1", "encoder.layers.{i}.blocks.{j}.layernorm_before", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "encoder.layers.{i}.blocks.{j}.intermediate.dense", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "encoder.layers.{i}.blocks.{j}.output.dense", LINEAR),
    Rule(f"{BLOCK}/norm2", "encoder.layers.{i}.blocks.{j}.layernorm_after", NORM),
    Rule(f"{STAGE}/downsample/reduction", "encoder.layers.{i}.downsample.reduction", merge_reduction("swin")),
    Rule(f"{STAGE}/downsample/norm", "encoder.layers.{i}.downsample.norm", NORM),
    Rule("encoder/norm", "layernorm", NORM),
)


def _folder(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    """config.json of a Swinv2Model and its like. Raises InputError for what Swinv2Config cannot say."""
    windows = config.model.pretrained_windows or (0,) * len(config.model.depths)
    return transformers_settings(config, parts, "Swinv2", "swinv2") | {"pretrained_window_sizes": list(windows)}


def _rows_decide(stage: WindowedStage) -> Fault | None:
    """transformers' windows shrink to the rows of a grid, and shift where it has more rows."""
    if stage.padded or stage.columns >= stage.rows or stage.columns > stage.window:
        return None
    expected = "expected no more rows than columns, or both above the window"
    then = f", and the library's windows follow the rows alone: {expected}"
    return Fault(f"{stage} with a window of {stage.window}", then, "refused")


_timm_windows = window_faults(windows_shrink_on_each_axis, padding_attends)


def _timm_faults(config: ConfigDict) -> Iterator[Fault]:
    yield from _timm_windows(config)
    if windows := config.model.pretrained_windows:
        told = f": the library's model is made with pretrained_window_sizes={tuple(windows)}, or computes other biases"
        yield Fault(f"model.pretrained_windows is {tuple(windows)}", told, "differs")


LAYOUTS: dict[str, Layout] = {
    "timm": Layout(
        _official("layers.{next}.downsample"),
        head=head("head.fc"),
        faults=_timm_faults,
    ),
    "hf": Layout(
        _HF,
        model_prefix="swinv2.",
        head=head("classifier"),
        decoders={"simmim": simmim_decoder("swinv2.embeddings.mask_token")},
        faults=window_faults(_rows_decide, padding_attends, small_grids_have_one_window),
        folder=_folder,
    ),
}
