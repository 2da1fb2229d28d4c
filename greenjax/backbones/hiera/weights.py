"""The names of Hiera in PyTorch, a table a layout."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.hiera.family import is_local, unpooled
from greenjax.backbones.layers import transformers_ratio
from greenjax.backbones.positions import POSITIONS
from greenjax.backbones.rules import Fault, Layout, OtherName, Rule, Table, head
from greenjax.backbones.transforms import CONV, LINEAR, NORM, PIXEL_SHUFFLE, Kind, one, token
from greenjax.backbones.vit.positions import RESIZING, positions_from_torch, positions_to_torch
from greenjax.errors import InputError
from greenjax.planning.tokens import to_grid, to_unit_major

BLOCK = "encoder/stages/{i}/blocks/{j}"


def _positions(name: str, stage: int = 0) -> Kind:
    return (one(POSITIONS, name, positions_to_torch, partial(positions_from_torch, stage=stage)),)


def _blocks(ours: str, block: str, norm1: str, norm2: str) -> Table:
    return (
        Rule(f"{ours}/norm1", f"{block}.{norm1}", NORM),
        Rule(f"{ours}/attn/qkv", f"{block}.attn.qkv", LINEAR),
        Rule(f"{ours}/attn/proj", f"{block}.attn.proj", LINEAR),
        Rule(f"{ours}/proj", f"{block}.proj", LINEAR),
        Rule(f"{ours}/norm2", f"{block}.{norm2}", NORM),
        Rule(f"{ours}/mlp/fc1", f"{block}.mlp.fc1", LINEAR),
        Rule(f"{ours}/mlp/fc2", f"{block}.mlp.fc2", LINEAR),
    )


def _official(norm: str) -> Table:
    """facebookresearch/hiera; blocks are counted through all stages. timm has its names, but for norm and head."""
    return (
        Rule("encoder/patch_embed/proj", "patch_embed.proj", CONV),
        Rule("encoder/patch_embed", "", _positions("pos_embed")),
        *_blocks(BLOCK, "blocks.{n}", "norm1", "norm2"),
        Rule("encoder/norm", norm, NORM),
    )


# Of facebookresearch/hiera's masked autoencoders, whose decoder predicts 16 x 16 pixels from all stages.
_MAE_PARTS = ("multi_scale_fusion_heads.", "decoder_", "mask_token")

_HF: Table = (
    Rule("encoder/patch_embed/proj", "embeddings.patch_embeddings.projection", CONV),
    Rule("encoder/patch_embed", "embeddings", _positions("position_embeddings")),
    *_blocks(BLOCK, "encoder.stages.{i}.layers.{j}", "layernorm_before", "layernorm_after"),
    Rule("encoder/norm", "pooler.layernorm", NORM),
)


def _fusion_to_torch(config: ConfigDict, x: Float[np.ndarray, "i o"]) -> Float[np.ndarray, "o c side side"]:
    """The matrix of a fusion, whose inputs are the channels of each member of a block in unit-major order."""
    side = _fused_side(config, len(x))
    grid = to_grid(x.reshape(1, side**2, -1), (1, 1), side)
    return grid.reshape(side, side, -1, x.shape[1]).transpose(3, 2, 0, 1)


def _fusion_from_torch(config: ConfigDict, x: Float[np.ndarray, "o c side side"]) -> Float[np.ndarray, "i o"]:
    side = x.shape[2]
    return to_unit_major(x.transpose(2, 3, 1, 0).reshape(1, side, side, -1), side).reshape(-1, len(x))


def _fused_side(config: ConfigDict, inputs: int) -> int:
    """The side of a kernel with so many inputs in all: a stage has twice the channels of the one before."""
    grid, width = token_grid(config), config.model.embed_dim
    sides = {grid.side(i) // grid.side(-1): width * 2**i for i in range(grid.stages)}
    return next(side for side, channels in sides.items() if side**2 * channels == inputs)


_FUSION: Kind = (one("kernel", "weight", _fusion_to_torch, _fusion_from_torch), LINEAR[1])
# Of pixels as (channel, row, column), as the 1 x 1 convolution of SimMIM predicts them.
_PIXELS: Kind = (
    one(
        "kernel",
        "weight",
        lambda c, x: PIXEL_SHUFFLE[0].to_torch(c, x)[0][:, :, 0, 0],
        lambda c, x: PIXEL_SHUFFLE[0].from_torch(c, x[:, :, None, None])[0],
    ),
    PIXEL_SHUFFLE[1],
)

_HF_DECODER: Table = (
    Rule("decoder/embed", "decoder.decoder_embeddings", LINEAR),
    Rule("decoder/fusion/{i}", "multiscale_fusion.multi_scale_fusion_heads.{i}", _FUSION),
    Rule("decoder", "decoder", (*token("mask_token"), *_positions("decoder_position_embeddings", -1))),
    *_blocks("decoder/blocks/{j}", "decoder.decoder_block.layers.{j}", "layernorm_before", "layernorm_after"),
    Rule("decoder/norm", "decoder.decoder_norm", NORM),
    Rule("decoder/head", "decoder.decoder_pred", _PIXELS),
)
# Without a classifier there is no pooling before this norm: it follows the fusion.
_FUSED_NORM = OtherName("hiera.pooler.layernorm", "encoder_norm", lambda config: config.task == "pretrain")


def _official_faults(config: ConfigDict) -> Iterator[Fault]:
    if unpooled(config.model):
        pools = f"model.query_pools is {config.model.query_pools}"
        yield Fault(pools, ": the library's model pools once more, unless it is made with q_pool", "differs")


def _folder(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    """config.json of a HieraModel, HieraForImageClassification or HieraForPreTraining.

    Raises InputError for what HieraConfig cannot say.
    """
    model, decoder, stages = config.model, config.decoder, len(config.model.depths)
    ratio = transformers_ratio(model.mlp_ratio, stage_channels(config))
    if "decoder" in parts and ratio != 4:
        raise InputError(f"model.mlp_ratio is {model.mlp_ratio}: expected 4, as the decoder has it, with layout 'hf'")
    kinds = {"head": "HieraForImageClassification", "decoder": "HieraForPreTraining"}
    described = {
        "architectures": [next((kind for part, kind in kinds.items() if part in parts), "HieraModel")],
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
        "mlp_ratio": ratio,
        "num_query_pool": stages - 1 - unpooled(model),
        "query_stride": [2, 2],
        "masked_unit_size": [token_grid(config).side(0)] * 2,
        "masked_unit_attention": [is_local(stage, stages) for stage in range(stages)],
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_epsilon,
        "drop_path_rate": model.drop_path,
        "dtype": "float32",
    }
    if "decoder" in parts:
        described |= {
            "decoder_hidden_size": decoder.dim,
            "decoder_depth": decoder.depth,
            "decoder_num_heads": decoder.num_heads,
            "normalize_pixel_loss": decoder.norm_pixels,
            "mask_ratio": config.mask.ratio,
        }
    return described


__all__ = ["LAYOUTS", "RESIZING"]

LAYOUTS: dict[str, Layout] = {
    "hiera": Layout(_official("norm"), head=head("head.projection"), faults=_official_faults, epsilon=1e-6),
    "hiera_mae": Layout(_official("encoder_norm"), ignored=_MAE_PARTS, epsilon=1e-6),
    "timm": Layout(_official("head.norm"), head=head("head.fc"), faults=_official_faults, epsilon=1e-6),
    "hf": Layout(
        _HF,
        model_prefix="hiera.",
        head=head("classifier"),
        decoders={"green": _HF_DECODER},
        fused=True,
        other_names=(_FUSED_NORM,),
        decoder_positions=("decoder.decoder_position_embeddings", 0),
        epsilon=1e-6,
        folder=_folder,
        autoencoder="hiera",
        of_autoencoder={"decoder.fusion": True, "decoder.positions": "learned"},
    ),
}
