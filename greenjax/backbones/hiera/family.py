"""What Hiera (arXiv 2306.00989) states of itself."""

from typing import Any

from greenjax.backbones.family import Family, check_heads, refuse_part
from greenjax.backbones.settings import EMBED_DIM, NUM_HEADS, UNSET, count
from greenjax.backbones.swin.family import channels
from greenjax.planning import StageSpec, TokenGrid


def _size(embed_dim: int, depths: tuple[int, ...], heads: int) -> dict[str, Any]:
    num_heads = tuple(heads * 2**stage for stage in range(4))
    shape = dict(embed_dim=embed_dim, depths=depths, num_heads=num_heads, mlp_ratio=4.0)
    return dict(shape, patch=4, norm_epsilon=1e-6, query_pools=3)


def stages(model: Any, grid: TokenGrid) -> tuple[StageSpec, ...]:
    """Mask units are the windows, all equal, so nothing is grouped."""
    return (StageSpec(),) * grid.stages


def is_local(stage: int, stages: int) -> bool:
    """Does attention stay inside mask units? In the last two stages it does not (section 3)."""
    return stage < stages - 2


def unpooled(model: Any) -> int:
    return max(0, len(model.depths) - 1 - model.query_pools)


def check(model: Any) -> None:
    if unpooled(model) > 1:
        stages = len(model.depths)
        refuse_part(model, "query_pools", f"{stages - 2} or {stages - 1} for {stages} stages (model.depths)")
    check_heads(model, channels(model), " (model.embed_dim doubles at each stage)")


FAMILY = Family(
    package=__package__,
    sizes={  # table 2
        "hiera_t": _size(96, (1, 2, 7, 2), 1),
        "hiera_s": _size(96, (1, 2, 11, 2), 1),
        "hiera_b": _size(96, (2, 3, 16, 3), 1),
        "hiera_b_plus": _size(112, (2, 3, 16, 3), 2),
        "hiera_l": _size(144, (2, 6, 36, 4), 2),
        "hiera_h": _size(256, (2, 6, 36, 4), 4),
    },
    settings={
        "embed_dim": EMBED_DIM,
        "num_heads": NUM_HEADS,
        "query_pools": count(None, 0, UNSET)
        ._replace(free=True, own=True)
        .means(
            "stages that pool 2 x 2 tokens of the one before, at most; with 2 of 3, the last stage does not; 0: 3, as"
            " published; not given: 3, or that of init"
        ),
    },
    channels=channels,
    stages=stages,
    check=check,
    beside_blocks={},
    overlapping=True,
    norms_pooled=True,
    unpooled=unpooled,
    unpooled_by="query_pools",
)
