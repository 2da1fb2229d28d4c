"""The names of Hiera in PyTorch, a table a layout, and its positions for images of another size."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.hiera.family import is_local
from greenjax.backbones.rules import Layout, Resizing, Rule, Shape, Table, head
from greenjax.backbones.transforms import CONV, LINEAR, NORM, Kind, one, same
from greenjax.errors import InputError

BLOCK = "encoder/stages/{i}/blocks/{j}"
POSITIONS = "positions"


def _positions(name: str) -> Kind:
    return (one(POSITIONS, name, same, same),)


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
    return len(found) == 3 and found[2] == wanted[2] and _side(found) > 0 and _side(wanted) > 0


def _side(shape: Shape) -> int:
    """Tokens along a side of a square grid; 0 for another grid, whose sides the number of tokens does not tell."""
    side = math.isqrt(shape[1])
    return side if side**2 == shape[1] else 0


def _resized(positions: Float[np.ndarray, "1 n c"], wanted: Shape, method: str) -> Float[np.ndarray, "1 n2 c"]:
    """Bicubic with antialiasing, as timm's resample_abs_pos_embed. Raises InputError for method "none"."""
    import jax  # the command line knows the layouts without it

    source, target = _side(positions.shape), _side(wanted)
    if method == "none":
        raise InputError(
            f"the grid of tokens is {source} x {source} in the weights, {target} x {target} here, and resize is 'none':"
            " expected the same"
        )
    grid = positions.reshape(source, source, -1)
    resized = jax.image.resize(grid, (target, target, grid.shape[2]), jax.image.ResizeMethod.CUBIC, antialias=True)
    return np.asarray(resized).reshape(1, target**2, -1)


def _line(found: Shape, wanted: Shape, method: str) -> str:
    del method
    source, target = _side(found), _side(wanted)
    return f"positions resized (bicubic) from {source} x {source} to {target} x {target} tokens"


RESIZING = Resizing(POSITIONS, _fits, _resized, _line)
