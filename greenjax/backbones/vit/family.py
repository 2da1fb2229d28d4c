"""What ViT (arXiv 2010.11929) states of itself."""

from typing import Any

from greenjax.backbones.family import Family, check_heads, refuse_part
from greenjax.backbones.settings import EMBED_DIM, NUM_HEADS, UNSET, Key, choice
from greenjax.planning import StageSpec, TokenGrid


def _size(embed_dim: int, depth: int, num_heads: int) -> dict[str, Any]:
    shape = dict(embed_dim=embed_dim, depths=(depth,), num_heads=(num_heads,), mlp_ratio=4.0)
    return dict(shape, patch=16, norm_epsilon=1e-6, class_token=True, positions="learned", pool="token")


def channels(model: Any) -> tuple[int, ...]:
    return (model.embed_dim,)


def stages(model: Any, grid: TokenGrid) -> tuple[StageSpec, ...]:
    """Attention is global, so nothing is grouped. A mask unit is a patch."""
    return (StageSpec(),) * grid.stages


def check(model: Any) -> None:
    if len(model.depths) != 1:
        refuse_part(model, "depths", f"one number: {model.name} has one stage")
    check_heads(model, channels(model))
    if model.positions == "sincos" and model.embed_dim % 4:
        refuse_part(model, "embed_dim", "a multiple of 4 (sine and cosine of row and column)")
    if model.pool == "token" and not model.class_token:
        refuse_part(model, "pool", "mean where model.class_token is False")


FAMILY = Family(
    package=__package__,
    sizes={
        "vit_s": _size(384, 12, 6),
        "vit_b": _size(768, 12, 12),
        "vit_l": _size(1024, 24, 16),
    },
    settings={
        "embed_dim": EMBED_DIM,
        "num_heads": NUM_HEADS,
        "class_token": Key(bool, None, "True or False").means("a learnt token that attends beside those of the image"),
        "positions": choice(None, "learned", "sincos", note=UNSET)
        ._replace(free=True, own=True)
        .means("learned: trained; sincos: fixed, sines and cosines of row and column, or those that init has"),
        "pool": choice(None, "token", "mean", note=UNSET)
        ._replace(free=True, own=True)
        .means("what a classifier reads: the class token, or the mean of the others"),
    },
    channels=channels,
    stages=stages,
    check=check,
    beside_blocks={"class_token": "before", "positions": "before"},
    norms_pooled=True,
    read_by_head=("pool",),
    reads_token=lambda model: model.pool == "token",
)
