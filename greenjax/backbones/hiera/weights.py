"""The names of Hiera in PyTorch, a table a layout, and its positions for images of another size."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.hiera.family import is_local
from greenjax.backbones.rules import Layout, Resizing, Rule, Shape, Table, head
from greenjax.backbones.transforms import CONV, LINEAR, NORM, Kind, one
from greenjax.errors import InputError

BLOCK = "encoder/stages/{i}/blocks/{j}"
POSITIONS = "positions"


def _positions_to_torch(config: ConfigDict, x: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "1 n c"]:
    return x.reshape(1, -1, x.shape[2])


def _positions_from_torch(config: ConfigDict, x: Float[np.ndarray, "1 n c"]) -> Float[np.ndarray, "h w c"]:
    """Raises InputError for positions neither of this grid nor of a square one: their number tells no other grid."""
    n, (rows, columns) = x.shape[1], token_grid(config).shape(0)
    if n != rows * columns:
        rows = columns = math.isqrt(n)
    if n != rows * columns:
        raise InputError(
            f"the file has {n} positions, of a grid that is not square, and image_size is {config.image_size}:"
            " expected the image_size of the file, or a file of a square grid"
        )
    return x.reshape(rows, columns, -1)


def _positions(name: str) -> Kind:
    return (one(POSITIONS, name, _positions_to_torch, _positions_from_torch),)


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


LAYOUTS: dict[str, Layout] = {
    "hiera": Layout(_official("norm"), head=head("head.projection"), epsilon=1e-6),
    "hiera_mae": Layout(_official("encoder_norm"), ignored=_MAE_PARTS, epsilon=1e-6),
    "timm": Layout(_official("head.norm"), head=head("head.fc"), epsilon=1e-6),
    "hf": Layout(_HF, model_prefix="hiera.", head=head("classifier"), epsilon=1e-6, folder=_folder),
}


def _fits(found: Shape, wanted: Shape) -> bool:
    return len(found) == 3 and found[2] == wanted[2]


def _resized(positions: Float[np.ndarray, "h w c"], wanted: Shape, method: str) -> Float[np.ndarray, "h2 w2 c"]:
    """Bicubic with antialiasing, as timm's resample_abs_pos_embed. Raises InputError for method "none"."""
    import jax  # the command line knows the layouts without it

    if method == "none":
        raise InputError(
            f"the grid of tokens is {_named(positions.shape)} in the weights, {_named(wanted)} here, and resize is"
            " 'none': expected the same"
        )
    return np.asarray(jax.image.resize(positions, wanted, jax.image.ResizeMethod.CUBIC, antialias=True))


def _line(found: Shape, wanted: Shape, method: str) -> str:
    del method
    return f"positions resized (bicubic) from {_named(found)} to {_named(wanted)} tokens"


def _named(shape: Shape) -> str:
    return f"{shape[0]} x {shape[1]}"


RESIZING = Resizing(POSITIONS, _fits, _resized, _line)
