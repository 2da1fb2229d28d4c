"""The PyTorch layouts: one table each, from our modules to the names there, and how the arrays change on the way.

In names, {i} is the stage and {j} the block; {next}, {odd} and {even} stand for i + 1, 2 i + 1 and 2 i + 2, {last} for
the last stage. A table covers every parameter of what it converts: the encoder, a classifier's head, a decoder.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.geometry import stage_channels
from greenjax.backbones.transforms import (
    CONV,
    LINEAR,
    NORM,
    PATCHES,
    PIXEL_SHUFFLE,
    PLAIN_CONV,
    SPLIT_QKV,
    TABLE,
    Kind,
    merge_norm,
    merge_reduction,
    token,
)
from greenjax.interop.buffers import swin_buffers


class Rule(NamedTuple):
    """One of our modules, its name there, and what becomes of its arrays."""

    ours: str
    theirs: str
    kind: Kind


Table = tuple[Rule, ...]
STAGE, BLOCK = "encoder/stages/{i}", "encoder/stages/{i}/blocks/{j}"


def swin(merge_order: str = "swin") -> Table:
    """microsoft/Swin-Transformer."""
    return (
        Rule("encoder/patch_embed/proj", "patch_embed.proj", PATCHES),
        Rule("encoder/patch_embed/norm", "patch_embed.norm", NORM),
        Rule(f"{BLOCK}/norm1", "layers.{i}.blocks.{j}.norm1", NORM),
        Rule(f"{BLOCK}/attn", "layers.{i}.blocks.{j}.attn", TABLE),
        Rule(f"{BLOCK}/attn/qkv", "layers.{i}.blocks.{j}.attn.qkv", LINEAR),
        Rule(f"{BLOCK}/attn/proj", "layers.{i}.blocks.{j}.attn.proj", LINEAR),
        Rule(f"{BLOCK}/norm2", "layers.{i}.blocks.{j}.norm2", NORM),
        Rule(f"{BLOCK}/mlp/fc1", "layers.{i}.blocks.{j}.mlp.fc1", LINEAR),
        Rule(f"{BLOCK}/mlp/fc2", "layers.{i}.blocks.{j}.mlp.fc2", LINEAR),
        Rule(f"{STAGE}/downsample/norm", "layers.{i}.downsample.norm", merge_norm(merge_order)),
        Rule(f"{STAGE}/downsample/reduction", "layers.{i}.downsample.reduction", merge_reduction(merge_order)),
        Rule("encoder/norm", "norm", NORM),
    )


# timm >= 0.9 merges at the start of the next stage.
_TIMM_SWIN: Table = (
    Rule("encoder/patch_embed/proj", "patch_embed.proj", PATCHES),
    Rule("encoder/patch_embed/norm", "patch_embed.norm", NORM),
    Rule(f"{BLOCK}/norm1", "layers.{i}.blocks.{j}.norm1", NORM),
    Rule(f"{BLOCK}/attn", "layers.{i}.blocks.{j}.attn", TABLE),
    Rule(f"{BLOCK}/attn/qkv", "layers.{i}.blocks.{j}.attn.qkv", LINEAR),
    Rule(f"{BLOCK}/attn/proj", "layers.{i}.blocks.{j}.attn.proj", LINEAR),
    Rule(f"{BLOCK}/norm2", "layers.{i}.blocks.{j}.norm2", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "layers.{i}.blocks.{j}.mlp.fc1", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "layers.{i}.blocks.{j}.mlp.fc2", LINEAR),
    Rule(f"{STAGE}/downsample/norm", "layers.{next}.downsample.norm", merge_norm("swin")),
    Rule(f"{STAGE}/downsample/reduction", "layers.{next}.downsample.reduction", merge_reduction("swin")),
    Rule("encoder/norm", "norm", NORM),
)

_TORCHVISION_SWIN: Table = (
    Rule("encoder/patch_embed/proj", "features.0.0", PATCHES),
    Rule("encoder/patch_embed/norm", "features.0.2", NORM),
    Rule(f"{BLOCK}/norm1", "features.{odd}.{j}.norm1", NORM),
    Rule(f"{BLOCK}/attn", "features.{odd}.{j}.attn", TABLE),
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
_MMDET_SWIN: Table = (
    Rule("encoder/patch_embed/proj", "patch_embed.projection", PATCHES),
    Rule("encoder/patch_embed/norm", "patch_embed.norm", NORM),
    Rule(f"{BLOCK}/norm1", "stages.{i}.blocks.{j}.norm1", NORM),
    Rule(f"{BLOCK}/attn", "stages.{i}.blocks.{j}.attn.w_msa", TABLE),
    Rule(f"{BLOCK}/attn/qkv", "stages.{i}.blocks.{j}.attn.w_msa.qkv", LINEAR),
    Rule(f"{BLOCK}/attn/proj", "stages.{i}.blocks.{j}.attn.w_msa.proj", LINEAR),
    Rule(f"{BLOCK}/norm2", "stages.{i}.blocks.{j}.norm2", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "stages.{i}.blocks.{j}.ffn.layers.0.0", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "stages.{i}.blocks.{j}.ffn.layers.1", LINEAR),
    Rule(f"{STAGE}/downsample/norm", "stages.{i}.downsample.norm", merge_norm("unfold")),
    Rule(f"{STAGE}/downsample/reduction", "stages.{i}.downsample.reduction", merge_reduction("unfold")),
    Rule("encoder/norm", "norm{last}", NORM),
)

# The names of saved files; in memory transformers 5 has others.
_HF_SWIN: Table = (
    Rule("encoder/patch_embed/proj", "embeddings.patch_embeddings.projection", PATCHES),
    Rule("encoder/patch_embed/norm", "embeddings.norm", NORM),
    Rule(f"{BLOCK}/norm1", "encoder.layers.{i}.blocks.{j}.layernorm_before", NORM),
    Rule(f"{BLOCK}/attn", "encoder.layers.{i}.blocks.{j}.attention.self", TABLE),
    Rule(f"{BLOCK}/attn", "encoder.layers.{i}.blocks.{j}.attention.self", SPLIT_QKV),
    Rule(f"{BLOCK}/attn/proj", "encoder.layers.{i}.blocks.{j}.attention.output.dense", LINEAR),
    Rule(f"{BLOCK}/norm2", "encoder.layers.{i}.blocks.{j}.layernorm_after", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "encoder.layers.{i}.blocks.{j}.intermediate.dense", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "encoder.layers.{i}.blocks.{j}.output.dense", LINEAR),
    Rule(f"{STAGE}/downsample/norm", "encoder.layers.{i}.downsample.norm", merge_norm("swin")),
    Rule(f"{STAGE}/downsample/reduction", "encoder.layers.{i}.downsample.reduction", merge_reduction("swin")),
    Rule("encoder/norm", "layernorm", NORM),
)


def _twins(positional: Kind = CONV) -> Table:
    """Meituan-AutoML/Twins, and timm."""
    return (
        Rule("encoder/patch_embed/proj", "patch_embeds.0.proj", PATCHES),
        Rule("encoder/patch_embed/norm", "patch_embeds.0.norm", NORM),
        Rule(f"{STAGE}/patch_embed", "patch_embeds.{i}.proj", CONV),
        Rule(f"{STAGE}/patch_embed/norm", "patch_embeds.{i}.norm", NORM),
        Rule(f"{BLOCK}/norm1", "blocks.{i}.{j}.norm1", NORM),
        Rule(f"{BLOCK}/attn/qkv", "blocks.{i}.{j}.attn.qkv", LINEAR),
        Rule(f"{BLOCK}/attn/q", "blocks.{i}.{j}.attn.q", LINEAR),
        Rule(f"{BLOCK}/attn/kv", "blocks.{i}.{j}.attn.kv", LINEAR),
        Rule(f"{BLOCK}/attn/sr", "blocks.{i}.{j}.attn.sr", CONV),
        Rule(f"{BLOCK}/attn/sr/norm", "blocks.{i}.{j}.attn.norm", NORM),
        Rule(f"{BLOCK}/attn/proj", "blocks.{i}.{j}.attn.proj", LINEAR),
        Rule(f"{BLOCK}/norm2", "blocks.{i}.{j}.norm2", NORM),
        Rule(f"{BLOCK}/mlp/fc1", "blocks.{i}.{j}.mlp.fc1", LINEAR),
        Rule(f"{BLOCK}/mlp/fc2", "blocks.{i}.{j}.mlp.fc2", LINEAR),
        Rule(f"{STAGE}/peg", "pos_block.{i}.proj.0", positional),
        Rule("encoder/norm", "norm", NORM),
    )


# mmpretrain's SVT and PCPVT, which mmdetection takes as backbones.
_MMDET_TWINS: Table = (
    Rule("encoder/patch_embed/proj", "patch_embeds.0.projection", PATCHES),
    Rule("encoder/patch_embed/norm", "patch_embeds.0.norm", NORM),
    Rule(f"{STAGE}/patch_embed", "patch_embeds.{i}.projection", CONV),
    Rule(f"{STAGE}/patch_embed/norm", "patch_embeds.{i}.norm", NORM),
    Rule(f"{BLOCK}/norm1", "stages.{i}.{j}.norm1", NORM),
    Rule(f"{BLOCK}/attn/qkv", "stages.{i}.{j}.attn.qkv", LINEAR),
    Rule(f"{BLOCK}/attn/q", "stages.{i}.{j}.attn.q", LINEAR),
    Rule(f"{BLOCK}/attn/kv", "stages.{i}.{j}.attn.kv", LINEAR),
    Rule(f"{BLOCK}/attn/sr", "stages.{i}.{j}.attn.sr", CONV),
    Rule(f"{BLOCK}/attn/sr/norm", "stages.{i}.{j}.attn.norm", NORM),
    Rule(f"{BLOCK}/attn/proj", "stages.{i}.{j}.attn.proj", LINEAR),
    Rule(f"{BLOCK}/norm2", "stages.{i}.{j}.norm2", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "stages.{i}.{j}.ffn.layers.0.0", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "stages.{i}.{j}.ffn.layers.1", LINEAR),
    Rule(f"{STAGE}/peg", "position_encodings.{i}.proj", CONV),
    Rule("encoder/norm", "norm_after_stage{last}", NORM),
)

# The decoder of MAE, whose names GreenMIM has: plain transformer blocks.
_MAE_DECODER: Table = (
    Rule("decoder/embed", "decoder_embed", LINEAR),
    Rule("decoder", "", token("mask_token")),
    Rule("decoder/blocks/{j}/norm1", "decoder_blocks.{j}.norm1", NORM),
    Rule("decoder/blocks/{j}/attn/qkv", "decoder_blocks.{j}.attn.qkv", LINEAR),
    Rule("decoder/blocks/{j}/attn/proj", "decoder_blocks.{j}.attn.proj", LINEAR),
    Rule("decoder/blocks/{j}/norm2", "decoder_blocks.{j}.norm2", NORM),
    Rule("decoder/blocks/{j}/mlp/fc1", "decoder_blocks.{j}.mlp.fc1", LINEAR),
    Rule("decoder/blocks/{j}/mlp/fc2", "decoder_blocks.{j}.mlp.fc2", LINEAR),
    Rule("decoder/norm", "decoder_norm", NORM),
    Rule("decoder/head", "decoder_pred", LINEAR),
)


def _simmim_decoder(mask_token: str) -> Table:
    return (Rule("pixel_head", "decoder.0", PIXEL_SHUFFLE), Rule("", "", token(mask_token)))


def _head(name: str) -> Table:
    return (Rule("head", name, LINEAR),)


def _nothing(config: ConfigDict) -> dict[str, np.ndarray]:
    return {}


def _mmdet_norms(config: ConfigDict) -> dict[str, np.ndarray]:
    """The norms of the stages before the last, which pre-training does not have: as they start there."""
    norms = {}
    for stage, dim in enumerate(stage_channels(config)[:-1]):
        norms |= {f"norm{stage}.weight": np.ones(dim, np.float32), f"norm{stage}.bias": np.zeros(dim, np.float32)}
    return norms


class Layout(NamedTuple):
    """How one library names the weights of one family of encoders."""

    encoder: Table
    prefix: str = ""  # of the encoder's names, always
    model_prefix: str = ""  # of the encoder's names in a file that holds more than the encoder
    head: Table = ()  # of a classifier; () = the library has none
    decoders: Mapping[str, Table] = {}  # by config.method
    buffers: Callable[[ConfigDict], dict[str, np.ndarray]] = _nothing  # of the encoder, named without a prefix
    extras: Callable[[ConfigDict], dict[str, np.ndarray]] = _nothing  # parameters that we do not have, as they start
    epsilon: float = 1e-5  # of the library's norms
    whole_windows: bool = False  # has no smaller window where a grid is smaller
    multiples: bool = False  # cannot run on a grid that is no multiple of the window


_OFFICIAL_BUFFERS = partial(swin_buffers, block="layers.{i}.blocks.{j}.attn", masks=True)

# By layout, then by family of encoders. PCPVT is named as Twins is.
LAYOUTS: dict[str, dict[str, Layout]] = {
    "swin": {"swin": Layout(swin(), head=_head("head"), buffers=_OFFICIAL_BUFFERS, multiples=True)},
    "twins": {"twins": Layout(_twins(), head=_head("head"), epsilon=1e-6, multiples=True)},
    "timm": {
        "swin": Layout(_TIMM_SWIN, head=_head("head.fc")),
        "twins": Layout(_twins(), head=_head("head"), epsilon=1e-6),
    },
    "hf": {
        "swin": Layout(
            _HF_SWIN,
            model_prefix="swin.",
            head=_head("classifier"),
            decoders={"simmim": _simmim_decoder("swin.embeddings.mask_token")},
            whole_windows=True,
        )
    },
    "mmdet": {
        "swin": Layout(
            _MMDET_SWIN,
            buffers=partial(swin_buffers, block="stages.{i}.blocks.{j}.attn.w_msa"),
            extras=_mmdet_norms,
            whole_windows=True,
        ),
        "twins": Layout(_MMDET_TWINS, epsilon=1e-6),
    },
    "torchvision": {
        "swin": Layout(
            _TORCHVISION_SWIN,
            head=_head("head"),
            buffers=partial(swin_buffers, block="features.{odd}.{j}.attn", flat=True),
            whole_windows=True,
        )
    },
    "greenmim": {
        "swin": Layout(swin(), prefix="encoder.", decoders={"green": _MAE_DECODER}, epsilon=1e-6),
        "twins": Layout(_twins(PLAIN_CONV), prefix="encoder.", decoders={"green": _MAE_DECODER}, epsilon=1e-6),
    },
    "simmim": {
        "swin": Layout(
            swin(),
            prefix="encoder.",
            decoders={"simmim": _simmim_decoder("encoder.mask_token")},
            buffers=_OFFICIAL_BUFFERS,
            multiples=True,
        )
    },
}
