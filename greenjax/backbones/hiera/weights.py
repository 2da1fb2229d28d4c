"""The names of Hiera in PyTorch, a table a layout."""

from typing import Any

from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.hiera.family import is_local
from greenjax.backbones.positions import POSITIONS, RESIZING, positions_from_torch, positions_to_torch
from greenjax.backbones.rules import Layout, Rule, Table, head
from greenjax.backbones.transforms import CONV, LINEAR, NORM, Kind, one
from greenjax.errors import InputError

BLOCK = "encoder/stages/{i}/blocks/{j}"


def _positions(name: str) -> Kind:
    return (one(POSITIONS, name, positions_to_torch, positions_from_torch),)


def _blocks(block: str, norm1: str, norm2: str) -> Table:
    return (
        Rule(f"{BLOCK}/norm1", f"{block}.{norm1}", NORM),
        Rule(f"{BLOCK}/attn/qkv", f"{block}.attn.qkv", LINEAR),
        Rule(f"{BLOCK}/attn/proj", f"{block}.attn.proj", LINEAR),
        Rule(f"{BLOCK}/proj", f"{block}.proj", LINEAR),
        Rule(f"{BLOCK}/norm2", f"{block}.{norm2}", NORM),
        Rule(f"{BLOCK}/mlp/fc1", f"{block}.mlp.fc1", LINEAR),
        Rule(f"{BLOCK}/mlp/fc2", f"{block}.mlp.fc2", LINEAR),
    )


def _official(norm: str) -> Table:
    """facebookresearch/hiera; blocks are counted through all stages. timm has its names, but for norm and head."""
    return (
        Rule("encoder/patch_embed/proj", "patch_embed.proj", CONV),
        Rule("encoder/patch_embed", "", _positions("pos_embed")),
        *_blocks("blocks.{n}", "norm1", "norm2"),
        Rule("encoder/norm", norm, NORM),
    )


# Of facebookresearch/hiera's masked autoencoders, whose decoder predicts 16 x 16 pixels from all stages.
_MAE_PARTS = ("multi_scale_fusion_heads.", "decoder_", "mask_token")

_HF: Table = (
    Rule("encoder/patch_embed/proj", "embeddings.patch_embeddings.projection", CONV),
    Rule("encoder/patch_embed", "embeddings", _positions("position_embeddings")),
    *_blocks("encoder.stages.{i}.layers.{j}", "layernorm_before", "layernorm_after"),
    Rule("encoder/norm", "pooler.layernorm", NORM),
)


def _folder(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    """config.json of a HieraModel or HieraForImageClassification. Raises InputError for what HieraConfig cannot say."""
    model, stages = config.model, len(config.model.depths)
    if isinstance(model.mlp_ratio, tuple):
        raise InputError(f"model.mlp_ratio is {model.mlp_ratio}: expected one ratio for all stages with layout 'hf'")
    return {
        "architectures": ["HieraForImageClassification" if "head" in parts else "HieraModel"],
        "model_type": "hiera",
        "image_size": list(config.image_size),
        "num_channels": model.in_channels,
        "patch_size": [2 * model.patch - 1] * 2,
        "patch_stride": [model.patch] * 2,
        "patch_padding": [model.patch - 1] * 2,
        "embed_dim": model.embed_dim,
        "embed_dim_multiplier": 2.0,
        "depths": list(model.depths),
        "num_heads": list(model.num_heads),
        "mlp_ratio": model.mlp_ratio,
        "num_query_pool": stages - 1,
        "query_stride": [2, 2],
        "masked_unit_size": [token_grid(config).side(0)] * 2,
        "masked_unit_attention": [is_local(stage, stages) for stage in range(stages)],
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_epsilon,
        "drop_path_rate": model.drop_path,
        "dtype": "float32",
    }


__all__ = ["LAYOUTS", "RESIZING"]

LAYOUTS: dict[str, Layout] = {
    "hiera": Layout(_official("norm"), head=head("head.projection"), epsilon=1e-6),
    "hiera_mae": Layout(_official("encoder_norm"), ignored=_MAE_PARTS, epsilon=1e-6),
    "timm": Layout(_official("head.norm"), head=head("head.fc"), epsilon=1e-6),
    "hf": Layout(_HF, model_prefix="hiera.", head=head("classifier"), epsilon=1e-6, folder=_folder),
}
