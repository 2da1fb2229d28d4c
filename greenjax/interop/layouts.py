"""The PyTorch layouts: one table each, from our modules to the names there, and how the arrays change on the way.

In names, {i} is the stage and {j} the block; {next}, {odd} and {even} stand for i + 1, 2 i + 1 and 2 i + 2, {last} for
the last stage. A table covers every parameter of what it converts: the encoder, a classifier's head, a decoder.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from greenjax.errors import InputError
from greenjax.interop.buffers import stage_windows, swin_buffers
from greenjax.interop.transforms import (
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
from greenjax.models.decoder import sine_cosine_positions
from greenjax.planning import stage_channels, token_grid


class Rule(NamedTuple):
    """One of our modules, its name there, and what becomes of its arrays."""

    ours: str
    theirs: str
    kind: Kind


Table = tuple[Rule, ...]
STAGE, BLOCK = "encoder/stages/{i}", "encoder/stages/{i}/blocks/{j}"


def _swin(merge_order: str = "swin") -> Table:
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
    "swin": {"swin": Layout(_swin(), head=_head("head"), buffers=_OFFICIAL_BUFFERS, multiples=True)},
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
        "swin": Layout(_swin(), prefix="encoder.", decoders={"green": _MAE_DECODER}, epsilon=1e-6),
        "twins": Layout(_twins(PLAIN_CONV), prefix="encoder.", decoders={"green": _MAE_DECODER}, epsilon=1e-6),
    },
    "simmim": {
        "swin": Layout(
            _swin(),
            prefix="encoder.",
            decoders={"simmim": _simmim_decoder("encoder.mask_token")},
            buffers=_OFFICIAL_BUFFERS,
            multiples=True,
        )
    },
}


class Entry(NamedTuple):
    """Arrays of a model and the tensors that they become."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    there: Callable[..., tuple[np.ndarray, ...]]
    back: Callable[..., tuple[np.ndarray, ...]]


def family(config: ConfigDict) -> str:
    """Swin or Twins."""
    return "swin" if config.model.name.startswith("swin") else "twins"


def find_layout(name: str, config: ConfigDict, merge_order: str = "swin") -> Layout:
    """The layout for a resolved config's encoder. Raises InputError where there is none, or no such merge order."""
    if name not in LAYOUTS:
        raise InputError(f"layout is {name!r}: expected {' or '.join(LAYOUTS)}")
    kind = family(config)
    if kind not in LAYOUTS[name]:
        fitting = " or ".join(layout for layout, families in LAYOUTS.items() if kind in families)
        raise InputError(f"layout is {name!r}, which has no {config.model.name}: expected {fitting}")
    if merge_order not in ("swin", "raster"):
        raise InputError(f"merge_order is {merge_order!r}: expected 'swin' or 'raster'")
    if merge_order == "swin":
        return LAYOUTS[name][kind]
    if (name, kind) != ("greenmim", "swin"):
        raise InputError(
            f"merge_order is 'raster' with layout {name!r} of {config.model.name}: only greenmim's Swin has it"
        )
    return LAYOUTS[name][kind]._replace(encoder=_swin("raster"))


def entries(layout: Layout, names: Iterable[str], config: ConfigDict, *, whole: bool) -> list[Entry]:
    """Which tensors the named arrays of a model become, in the order of the tables.

    `whole`: the file holds more than the encoder.
    """
    modules: dict[str, set[str]] = {}
    for name in names:
        for cut in (match.start() for match in re.finditer("/", name)):
            modules.setdefault(name[:cut], set()).add(name[cut + 1 :])
        modules.setdefault("", set()).add(name)
    prefix = layout.prefix + (layout.model_prefix if whole else "")
    tables = [(layout.encoder, prefix), (layout.head, ""), *((table, "") for table in layout.decoders.values())]
    return [
        entry
        for table, stem in tables
        for rule in table
        for module, arrays in modules.items()
        for entry in _entries(rule, module, arrays, stem, config)
    ]


def _entries(rule: Rule, module: str, arrays: set[str], stem: str, config: ConfigDict) -> Iterable[Entry]:
    """Those of one rule for one module, if the rule is about it."""
    pattern = rule.ours.replace("{i}", r"(?P<i>\d+)").replace("{j}", r"(?P<j>\d+)")
    match = re.fullmatch(pattern, module)
    if match is None:
        return
    at: dict[str, Any] = {key: int(value) for key, value in match.groupdict().items()}
    if "i" in at:
        at |= dict(next=at["i"] + 1, odd=2 * at["i"] + 1, even=2 * at["i"] + 2)
    name = stem + rule.theirs.format(last=len(config.model.depths) - 1, **at)
    for part in rule.kind:
        if arrays.issuperset(part.ours):
            ours = tuple(f"{module}/{suffix}".lstrip("/") for suffix in part.ours)
            theirs = tuple(f"{name}.{suffix}".lstrip(".") for suffix in part.theirs)
            yield Entry(ours, theirs, part.there, part.back)


def fixed_tensors(name: str, layout: Layout, config: ConfigDict, *, whole: bool) -> dict[str, np.ndarray]:
    """What a strict load wants besides the model's parameters: buffers, and parameters that we do not have."""
    prefix = layout.prefix + (layout.model_prefix if whole else "")
    fixed = {prefix + key: value for key, value in (layout.buffers(config) | layout.extras(config)).items()}
    if name == "greenmim" and whole:
        positions = sine_cosine_positions(*token_grid(config).units, config.decoder.dim)
        fixed["decoder_pos_embed"] = positions[None]
    return fixed


def check_geometry(name: str, layout: Layout, config: ConfigDict) -> list[str]:
    """Raises InputError where the library cannot hold or run this model; returns what will differ there, in words."""
    notes = []
    if abs(config.model.norm_epsilon - layout.epsilon) > 1e-12:
        notes.append(f"norms there have epsilon {layout.epsilon:g}, here {config.model.norm_epsilon:g}")
    window, grid = config.model.window, token_grid(config)
    if window is None:
        return notes
    for stage in range(grid.stages):
        (rows, columns), at = (
            grid.shape(stage),
            f"stage {stage + 1} has a grid of {' x '.join(map(str, grid.shape(stage)))}",
        )
        if layout.whole_windows and min(rows, columns) < window:
            raise InputError(
                f"layout {name!r}: {at} tokens, smaller than the window of {window}, which it cannot have:"
                f" expected an image_size of at least {window * config.model.patch * 2**stage} a side there"
            )
        if name == "timm" and family(config) == "swin" and rows != columns and min(rows, columns) <= window:
            raise InputError(
                f"layout 'timm': {at} tokens with a window of {window}, which timm cuts on each axis by itself:"
                " expected a square grid, or one with both sides above the window"
            )
        side = stage_windows(config)[stage][0]
        if rows % side or columns % side:
            if layout.multiples:
                raise InputError(f"layout {name!r}: {at} tokens, which it cannot run: expected multiples of {side}")
            if (name, family(config)) != ("mmdet", "twins"):  # mmpretrain hides its padding, if both axes have some
                notes.append(
                    f"{at} tokens, no multiple of the window of {side}: there, padding attends; here it does not"
                )
        elif (
            (name, family(config)) == ("mmdet", "swin")
            and min(rows, columns) <= window
            and config.model.depths[stage] > 1
        ):
            notes.append(
                f"{at} tokens, no more than one window: there, odd blocks shift it; in larger images all is equal"
            )
    return notes


def describe(config: ConfigDict) -> dict[str, str]:
    """What a file says of the model in it, besides its layout."""
    model = {key: value for key, value in config.model.to_dict().items() if value is not None}
    return {
        "architecture": config.model.name,
        "window": str(config.model.window),
        "image_size": "x".join(map(str, config.image_size)),
        "mean": json.dumps(config.data.mean),
        "std": json.dumps(config.data.std),
        "model": json.dumps(model),
    }
