"""Names and shapes of the state_dicts that PyTorch libraries have, written down from their class definitions.

This is what exported weights are compared with, so it knows nothing of greenjax. A state_dict holds parameters and
persistent buffers. The one buffer of integers is `relative_position_index` (`dtype`); non-persistent ones are not here.

The Swin functions take the same arguments. `image_size`: a side in pixels, or height and width; libraries that do not
look at it when they build a model say so. A head is left out without `num_classes`.
"""

from itertools import pairwise

Shapes = dict[str, tuple[int, ...]]


def dtype(name: str) -> str:
    return "int64" if name.endswith("relative_position_index") else "float32"


# Layers and how names nest.


def under(prefix: str, *parts: Shapes) -> Shapes:
    """The parts, as children of one module."""
    return {f"{prefix}.{name}": shape for part in parts for name, shape in part.items()}


def joined(*parts: Shapes) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return under(name, {"weight": (outputs, inputs)}, {"bias": (outputs,)} if bias else {})


def norm(name: str, dim: int) -> Shapes:
    return under(name, {"weight": (dim,), "bias": (dim,)})


def conv(name: str, inputs: int, outputs: int, side: int) -> Shapes:
    """`inputs`: channels that one filter reads; 1 for a depth-wise convolution."""
    return under(name, {"weight": (outputs, inputs, side, side), "bias": (outputs,)})


def head(name: str, dim: int, num_classes: int) -> Shapes:
    return linear(name, dim, num_classes) if num_classes else {}


# Swin


def pair(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def stage_grid(image_size, patch: int, stage: int) -> tuple[int, int]:
    """Rows and columns of tokens."""
    height, width = pair(image_size)
    return height // (patch * 2**stage), width // (patch * 2**stage)


def window_attention(dim: int, heads: int, window: tuple[int, int], index: tuple[int, ...] | None) -> Shapes:
    """`index`: the shape of `relative_position_index`, where that is in the state_dict."""
    rows, columns = window
    table = {"relative_position_bias_table": ((2 * rows - 1) * (2 * columns - 1), heads)}
    buffer = {} if index is None else {"relative_position_index": index}
    return joined(table, buffer, linear("qkv", dim, 3 * dim), linear("proj", dim, dim))


def block(dim: int, hidden: int, fc1: str, fc2: str, attention: Shapes, attn: str = "attn") -> Shapes:
    """A transformer block of any of these libraries."""
    mlp = joined(linear(fc1, dim, hidden), linear(fc2, hidden, dim))
    return joined(norm("norm1", dim), under(attn, attention), norm("norm2", dim), mlp)


def merging(dim: int) -> Shapes:
    """The step from `dim` channels to twice as many."""
    return under("downsample", norm("norm", 4 * dim), linear("reduction", 4 * dim, 2 * dim, bias=False))


def swin_official(
    image_size, patch, in_chans, embed_dim, depths, num_heads, window, mlp_ratio=4.0, num_classes=0
) -> Shapes:
    """microsoft/Swin-Transformer, models/swin_transformer.py, SwinTransformer (ape=False, patch_norm=True).

    A window of at least the grid's shorter side becomes that side, on both axes, and is not shifted. Both buffers are
    persistent: `relative_position_index` of every block, `attn_mask` of the blocks that are shifted. The merging
    stands at the end of a stage.
    """
    last, stages = len(depths) - 1, []
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        dim, (rows, columns) = embed_dim * 2**i, stage_grid(image_size, patch, i)
        side, area = min(window, rows, columns), min(window, rows, columns) ** 2
        shifts = min(rows, columns) > window > 1
        mask = {"attn_mask": ((rows // side) * (columns // side), area, area)}
        attention = window_attention(dim, heads, (side, side), (area, area))
        one = block(dim, int(dim * mlp_ratio), "mlp.fc1", "mlp.fc2", attention)
        blocks = [under(f"blocks.{j}", one, mask if shifts and j % 2 else {}) for j in range(depth)]
        stages.append(under(f"layers.{i}", *blocks, merging(dim) if i < last else {}))
    patch_embed = under("patch_embed", conv("proj", in_chans, embed_dim, patch), norm("norm", embed_dim))
    features = embed_dim * 2**last
    return joined(patch_embed, *stages, norm("norm", features), head("head", features, num_classes))


def simmim_official(image_size, patch, in_chans, embed_dim, depths, num_heads, window, mlp_ratio=4.0) -> Shapes:
    """microsoft/SimMIM, models/simmim.py, SimMIM with SwinTransformerForSimMIM; the same in microsoft/Swin-Transformer.

    The encoder is the official Swin with a mask token. The decoder is a 1 x 1 convolution to the pixels of a unit,
    channel-major as nn.PixelShuffle reads them. The library fixes three colours and, for four stages of patch 4, 32.
    """
    encoder = swin_official(image_size, patch, in_chans, embed_dim, depths, num_heads, window, mlp_ratio)
    stride = patch * 2 ** (len(depths) - 1)
    decoder = conv("decoder.0", embed_dim * 2 ** (len(depths) - 1), stride**2 * in_chans, 1)
    return joined(under("encoder", {"mask_token": (1, 1, embed_dim)}, encoder), decoder)


def swin_timm(
    image_size, patch, in_chans, embed_dim, depths, num_heads, window, mlp_ratio=4.0, num_classes=0
) -> Shapes:
    """timm 1.0.31, timm.models.swin_transformer.SwinTransformer (always_partition=False).

    A window larger than the grid is cut on each axis by itself, so it need not be square. Neither
    `relative_position_index` nor `attn_mask` is persistent (since 0.9). The merging stands at the start of a stage, and
    the head is `head.fc`.
    """
    stages = []
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        dim, (rows, columns) = embed_dim * 2**i, stage_grid(image_size, patch, i)
        attention = window_attention(dim, heads, (min(window, rows), min(window, columns)), None)
        one = block(dim, int(dim * mlp_ratio), "mlp.fc1", "mlp.fc2", attention)
        blocks = [under(f"blocks.{j}", one) for j in range(depth)]
        stages.append(under(f"layers.{i}", merging(dim // 2) if i else {}, *blocks))
    patch_embed = under("patch_embed", conv("proj", in_chans, embed_dim, patch), norm("norm", embed_dim))
    features = embed_dim * 2 ** (len(depths) - 1)
    return joined(patch_embed, *stages, norm("norm", features), head("head.fc", features, num_classes))


def swin_torchvision(
    image_size, patch, in_chans, embed_dim, depths, num_heads, window, mlp_ratio=4.0, num_classes=0
) -> Shapes:
    """torchvision 0.29.1, torchvision.models.swin_transformer.SwinTransformer.

    Stages and mergings take turns in one Sequential after the patch embedding: features.0, .1, ... The index is
    persistent and flat. The image size is not looked at: a window larger than the grid stays as it is, and padding is
    attended to. The library fixes three colours, and always has a head; without `num_classes` it is taken off.
    """
    features = [under("features.0", conv("0", in_chans, embed_dim, patch), norm("2", embed_dim))]
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        dim = embed_dim * 2**i
        attention = window_attention(dim, heads, (window, window), (window**4,))
        one = block(dim, int(dim * mlp_ratio), "mlp.0", "mlp.3", attention)
        features.append(under(f"features.{2 * i + 1}", *(under(f"{j}", one) for j in range(depth))))
        if i + 1 < len(depths):
            layers = norm("norm", 4 * dim), linear("reduction", 4 * dim, 2 * dim, bias=False)
            features.append(under(f"features.{2 * i + 2}", *layers))
    last = embed_dim * 2 ** (len(depths) - 1)
    return joined(*features, norm("norm", last), head("head", last, num_classes))


def swin_mmdet(image_size, patch, in_chans, embed_dim, depths, num_heads, window, mlp_ratio=4) -> Shapes:
    """mmdet 3.3.0, mmdet.models.backbones.swin.SwinTransformer (every stage in out_indices, patch_norm=True).

    A norm for every stage that is put out, and no head. `relative_position_index` is persistent, masks are made on the
    fly. The image size is not looked at: a window larger than the grid stays as it is, padding is attended to, and odd
    blocks are shifted even where one window covers the grid. Its loader wants `backbone.` before every name.
    `mlp_ratio` is a whole number there. The merging's 4c inputs are channel-major, as nn.Unfold puts them out.
    """
    last, stages = len(depths) - 1, []
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        dim = embed_dim * 2**i
        attention = window_attention(dim, heads, (window, window), (window**2, window**2))
        one = block(dim, int(mlp_ratio * dim), "ffn.layers.0.0", "ffn.layers.1", attention, "attn.w_msa")
        blocks = [under(f"blocks.{j}", one) for j in range(depth)]
        stages.append(under(f"stages.{i}", *blocks, merging(dim) if i < last else {}))
    patch_embed = under("patch_embed", conv("projection", in_chans, embed_dim, patch), norm("norm", embed_dim))
    return joined(patch_embed, *stages, *(norm(f"norm{i}", embed_dim * 2**i) for i in range(last + 1)))


# Twins


def twins_attention(dim: int, ratio: int | None) -> Shapes:
    """`ratio`: of a global attention's sub-sampling; None: a local attention."""
    projection = linear("proj", dim, dim)
    if ratio is None:
        return joined(linear("qkv", dim, 3 * dim), projection)
    sampling = joined(conv("sr", dim, dim, ratio), norm("norm", dim)) if ratio > 1 else {}
    return joined(linear("q", dim, dim), linear("kv", dim, 2 * dim), projection, sampling)


def twins_blocks(name: str, embed_dims, depths, mlp_ratios, sr_ratios, window, fc1: str, fc2: str) -> Shapes:
    """`window`: of Twins-SVT, where local attention comes first in a stage; None: Twins-PCPVT. No shape shows it."""
    blocks = []
    for i, (dim, depth, factor, ratio) in enumerate(zip(embed_dims, depths, mlp_ratios, sr_ratios, strict=True)):
        for j in range(depth):
            attention = twins_attention(dim, None if window and j % 2 == 0 else ratio)
            blocks.append(under(f"{name}.{i}.{j}", block(dim, int(dim * factor), fc1, fc2, attention)))
    return joined(*blocks)


def twins_embeds(name: str, embed_dims, patch: int, in_chans: int) -> Shapes:
    """The patch embedding of each stage."""
    dims, sides = (in_chans, *embed_dims), (patch, *[2] * (len(embed_dims) - 1))
    layers = (joined(conv(name, a, b, side), norm("norm", b)) for (a, b), side in zip(pairwise(dims), sides))
    return joined(*(under(f"patch_embeds.{i}", layer) for i, layer in enumerate(layers)))


def twins_official(
    embed_dims, depths, num_heads, mlp_ratios, sr_ratios, window=7, num_classes=0, patch=4, in_chans=3
) -> Shapes:
    """Meituan-AutoML/Twins, gvt.py, ALTGVT (Twins-SVT) and CPVTV2 (Twins-PCPVT, `window` None), with qkv_bias=True.

    No buffers. The positional encoding is `pos_block.i.proj.0`, depth-wise. Heads do not show in any shape.
    """
    assert len(num_heads) == len(depths)
    blocks = twins_blocks("blocks", embed_dims, depths, mlp_ratios, sr_ratios, window, "mlp.fc1", "mlp.fc2")
    encodings = (conv(f"pos_block.{i}.proj.0", 1, dim, 3) for i, dim in enumerate(embed_dims))
    last = embed_dims[-1]
    embeds = twins_embeds("proj", embed_dims, patch, in_chans)
    return joined(embeds, blocks, *encodings, norm("norm", last), head("head", last, num_classes))


def vit_timm(
    image_size, patch, in_chans, embed_dim, depth, mlp_ratio=4.0, class_token=True, norm_name="norm", num_classes=0
) -> Shapes:
    """timm 1.0.31, timm.models.vision_transformer.VisionTransformer, blocks of the class Block with qkv_bias.

    `norm_name` is "norm", or "fc_norm" with global_pool="avg". `pos_embed` has a place for the class token.
    """
    rows, columns = stage_grid(image_size, patch, 0)
    tokens = {"pos_embed": (1, rows * columns + class_token, embed_dim)}
    tokens |= {"cls_token": (1, 1, embed_dim)} if class_token else {}
    attention = joined(linear("qkv", embed_dim, 3 * embed_dim), linear("proj", embed_dim, embed_dim))
    one = block(embed_dim, int(embed_dim * mlp_ratio), "mlp.fc1", "mlp.fc2", attention)
    blocks = [under(f"blocks.{j}", one) for j in range(depth)]
    embed = conv("patch_embed.proj", in_chans, embed_dim, patch)
    return joined(tokens, embed, *blocks, norm(norm_name, embed_dim), head("head", embed_dim, num_classes))


def twins_timm(*args, **kwargs) -> Shapes:
    """timm 1.0.31, timm.models.twins.Twins: the official names, without exception."""
    return twins_official(*args, **kwargs)


def twins_mm(embed_dims, depths, num_heads, mlp_ratios, sr_ratios, window=7, norms=None, patch=4, in_chans=3) -> Shapes:
    """mmpretrain 1.2.0, mmpretrain.models.backbones.twins, SVT and PCPVT (`window` None), with qkv_bias=True.

    (Their default is False, which drops the biases of qkv, q and kv.) `norms` is norm_after_stage, a flag a stage; by
    default the last only, as in the library's own configs, which is Twins' final norm. No buffers, no head.
    mmseg.models.backbones has the same classes with `layers` for stages and norms named otherwise.
    """
    assert len(num_heads) == len(depths)
    norms = [False] * (len(depths) - 1) + [True] if norms is None else norms
    blocks = twins_blocks("stages", embed_dims, depths, mlp_ratios, sr_ratios, window, "ffn.layers.0.0", "ffn.layers.1")
    encodings = (conv(f"position_encodings.{i}.proj", 1, dim, 3) for i, dim in enumerate(embed_dims))
    after = (norm(f"norm_after_stage{i}", dim) for i, dim in enumerate(embed_dims) if norms[i])
    return joined(twins_embeds("projection", embed_dims, patch, in_chans), blocks, *encodings, *after)
