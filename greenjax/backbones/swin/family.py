"""What Swin Transformer (arXiv 2103.14030) states of itself."""

from typing import Any

from greenjax.backbones.family import Family, check_heads, square_windows
from greenjax.backbones.settings import EMBED_DIM, NUM_HEADS, WINDOW
from greenjax.planning import StageSpec, TokenGrid


def size(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], window: int = 7) -> dict[str, Any]:
    shape = dict(embed_dim=embed_dim, depths=depths, num_heads=num_heads, mlp_ratio=4.0)
    return dict(shape, patch=4, window=window, norm_epsilon=1e-5)


def channels(model: Any) -> tuple[int, ...]:
    """They double at every stage."""
    return tuple(model.embed_dim * 2**stage for stage in range(len(model.depths)))


def stages(model: Any, grid: TokenGrid) -> tuple[StageSpec, ...]:
    """Every second block shifts its windows."""
    return tuple(
        StageSpec(square_windows(model.window, grid.shape(stage), depth, shifted=True, padded=grid.padded))
        for stage, depth in enumerate(model.depths)
    )


def check(model: Any) -> None:
    check_heads(model, channels(model), " (model.embed_dim doubles at each stage)")


FAMILY = Family(
    package=__package__,
    sizes={  # section 3.3
        "swin_t": size(96, (2, 2, 6, 2), (3, 6, 12, 24)),
        "swin_s": size(96, (2, 2, 18, 2), (3, 6, 12, 24)),
        "swin_b": size(128, (2, 2, 18, 2), (4, 8, 16, 32)),
        "swin_l": size(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    },
    settings={"window": WINDOW, "embed_dim": EMBED_DIM, "num_heads": NUM_HEADS},
    channels=channels,
    stages=stages,
    check=check,
    beside_blocks={"downsample": "last"},
    pads=True,
)
