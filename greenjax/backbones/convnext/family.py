"""What ConvNeXt (arXiv 2201.03545) states of itself."""

from typing import Any

from greenjax.backbones.family import Family
from greenjax.backbones.settings import EMBED_DIMS
from greenjax.planning import StageSpec, TokenGrid

KERNEL = 7  # rows and columns of the depth-wise convolutions


def size(embed_dim: int, depths: tuple[int, ...]) -> dict[str, Any]:
    """Settings of a model whose channels double at every stage, as in all published sizes."""
    embed_dims = tuple(embed_dim * 2**stage for stage in range(len(depths)))
    return dict(embed_dims=embed_dims, depths=depths, mlp_ratio=4.0, patch=4, norm_epsilon=1e-6)


def channels(model: Any) -> tuple[int, ...]:
    return model.embed_dims


def stages(model: Any, grid: TokenGrid) -> tuple[StageSpec, ...]:
    return tuple(StageSpec(kernels=(KERNEL,)) for _ in model.depths)


FAMILY = Family(
    package=__package__,
    sizes={  # section 3
        "convnext_t": size(96, (3, 3, 9, 3)),
        "convnext_s": size(96, (3, 3, 27, 3)),
        "convnext_b": size(128, (3, 3, 27, 3)),
        "convnext_l": size(192, (3, 3, 27, 3)),
    },
    settings={"embed_dims": EMBED_DIMS},
    channels=channels,
    stages=stages,
    check=lambda model: None,
    beside_blocks={"downsample": "first"},
    norms_pooled=True,
)
