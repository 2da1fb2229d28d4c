"""The names of ViT in PyTorch, a table a layout."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.backbones.layers import hidden_channels
from greenjax.backbones.positions import POSITIONS
from greenjax.backbones.rules import Fault, Layout, OtherName, Rule, Table, head, simmim_decoder
from greenjax.backbones.transforms import LINEAR, NORM, PATCHES, SPLIT_QKV, Kind, Part, one, token
from greenjax.backbones.vit.positions import RESIZING, positions_from_torch, positions_to_torch
from greenjax.errors import InputError

__all__ = ["LAYOUTS", "RESIZING"]

BLOCK = "encoder/stages/{i}/blocks/{j}"
Token = Float[np.ndarray, "1 1 c"]
Row = Float[np.ndarray, "1 n c"]


def _tokens_to_torch(
    config: ConfigDict, token: Float[np.ndarray, " c"], x: Float[np.ndarray, "h w c"]
) -> tuple[Token, Row]:
    """The class token, and positions with that of the class token, zeros, before them."""
    positions = positions_to_torch(config, x)
    return token[None, None], np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)


def _tokens_from_torch(
    config: ConfigDict, token: Token, x: Row
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "h w c"]]:
    return token[0, 0] + x[0, 0], positions_from_torch(config, x[:, 1:])


def _tokens(token: str, positions: str) -> Kind:
    """A class token and positions; or positions alone, where a model has no class token."""
    return (
        Part(("class_token", POSITIONS), (token, positions), _tokens_to_torch, _tokens_from_torch),
        one(POSITIONS, positions, positions_to_torch, positions_from_torch),
    )


_TIMM: Table = (
    Rule("encoder/patch_embed/proj", "patch_embed.proj", PATCHES),
    Rule("encoder", "", _tokens("cls_token", "pos_embed")),
    Rule(f"{BLOCK}/norm1", "blocks.{j}.norm1", NORM),
    Rule(f"{BLOCK}/attn/qkv", "blocks.{j}.attn.qkv", LINEAR),
    Rule(f"{BLOCK}/attn/proj", "blocks.{j}.attn.proj", LINEAR),
    Rule(f"{BLOCK}/norm2", "blocks.{j}.norm2", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "blocks.{j}.mlp.fc1", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "blocks.{j}.mlp.fc2", LINEAR),
    Rule("encoder/norm", "norm", NORM),
)


def _hf_block(ours: str, theirs: str) -> Table:
    """A block in saved files; in memory transformers 5 has other names."""
    return (
        Rule(f"{ours}/norm1", f"{theirs}.layernorm_before", NORM),
        Rule(f"{ours}/attn", f"{theirs}.attention.attention", SPLIT_QKV),
        Rule(f"{ours}/attn/proj", f"{theirs}.attention.output.dense", LINEAR),
        Rule(f"{ours}/norm2", f"{theirs}.layernorm_after", NORM),
        Rule(f"{ours}/mlp/fc1", f"{theirs}.intermediate.dense", LINEAR),
        Rule(f"{ours}/mlp/fc2", f"{theirs}.output.dense", LINEAR),
    )


_HF: Table = (
    Rule("encoder/patch_embed/proj", "embeddings.patch_embeddings.projection", PATCHES),
    Rule("encoder", "embeddings", _tokens("cls_token", "position_embeddings")),
    *_hf_block(BLOCK, "encoder.layer.{j}"),
    Rule("encoder/norm", "layernorm", NORM),
)

_HF_MAE_DECODER: Table = (
    Rule("decoder/embed", "decoder.decoder_embed", LINEAR),
    Rule("decoder", "decoder", token("mask_token")),
    *_hf_block("decoder/blocks/{j}", "decoder.decoder_layers.{j}"),
    Rule("decoder/norm", "decoder.decoder_norm", NORM),
    Rule("decoder/head", "decoder.decoder_pred", LINEAR),
)


_AUTOENCODER = "vit_mae"
# So transformers 5.23 writes files of ViTMAE; it reads the names above, which earlier versions write.
_DECODER_LAYERS = OtherName("decoder.decoder_layers", "decoder.decoder_encoder.layer", lambda config: False)


def _pools(config: ConfigDict) -> bool:
    return config.model.pool == "mean"


def _read_by_head(names: Iterable[str]) -> dict[str, str]:
    """timm has no fc_norm where the classifier reads the class token."""
    return {"pool": "mean" if any("fc_norm" in name.split(".") for name in names) else "token"}


def _hf_faults(config: ConfigDict) -> Iterator[Fault]:
    if not config.model.class_token:
        yield Fault("model.class_token is False", ": the library's models have a class token", "refused")
    elif _pools(config) and config.model.num_classes:
        yield Fault("model.pool is 'mean'", ": the library's classifier reads the class token", "refused")


def _folder(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    """config.json of a ViTModel, ViTForImageClassification, ViTForMaskedImageModeling or ViTMAEForPreTraining.

    Raises InputError for what they cannot take.
    """
    model, decoder, (rows, columns) = config.model, config.decoder, config.image_size
    if parts & {"decoder", "pixel_head"} and rows != columns:
        raise InputError(f"image_size is {config.image_size}: expected a square with layout 'hf' and a decoder")
    kinds = {"head": "ViTForImageClassification", "pixel_head": "ViTForMaskedImageModeling"}
    kinds |= {"decoder": "ViTMAEForPreTraining"}
    described = {
        "architectures": [next((kind for part, kind in kinds.items() if part in parts), "ViTModel")],
        "model_type": _AUTOENCODER if "decoder" in parts else "vit",
        "image_size": rows if rows == columns else [rows, columns],
        "num_channels": model.in_channels,
        "patch_size": model.patch,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depths[0],
        "num_attention_heads": model.num_heads[0],
        "intermediate_size": hidden_channels(model.mlp_ratio, (model.embed_dim,))[0],
        "qkv_bias": True,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": model.norm_epsilon,
        "dtype": "float32",
    }
    if "pixel_head" in parts:
        described["encoder_stride"] = model.patch
    if "decoder" in parts:
        described |= {
            "decoder_hidden_size": decoder.dim,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.num_heads,
            "decoder_intermediate_size": 4 * decoder.dim,
            "mask_ratio": config.mask.ratio,
            "norm_pix_loss": decoder.norm_pixels,
        }
    return described


LAYOUTS: dict[str, Layout] = {
    "timm": Layout(
        _TIMM,
        head=head("head"),
        ignored=("decoder_", "mask_token"),  # of masked autoencoders whose encoder has timm's names
        other_names=(OtherName("norm", "fc_norm", _pools),),
        read_by_head=_read_by_head,
        epsilon=1e-6,
    ),
    "hf": Layout(
        _HF,
        model_prefix="vit.",
        head=head("classifier"),
        ignored=("pooler.", "vit.pooler."),
        decoders={"green": _HF_MAE_DECODER, "simmim": simmim_decoder("vit.embeddings.mask_token")},
        other_names=(_DECODER_LAYERS,),
        read_by_head=lambda names: {"pool": "token"},
        decoder_positions=("decoder.decoder_pos_embed", 1),
        faults=_hf_faults,
        epsilon=1e-6,
        any_epsilon=True,
        folder=_folder,
        autoencoder=_AUTOENCODER,
        of_autoencoder={"model.positions": "sincos"},
    ),
}
