"""What PVT v2 (arXiv 2106.13797) states of itself."""

from typing import Any

from greenjax.backbones.family import Family
from greenjax.backbones.settings import EMBED_DIMS, NUM_HEADS, SR_RATIOS
from greenjax.backbones.twins.family import channels, check
from greenjax.planning import StageSpec, TokenGrid

KERNEL = 3  # rows and columns of the depth-wise convolutions, and of the patch embeddings between stages
PATCH = 4  # stride of the first patch embedding, of every published size


def _size(
    depths: tuple[int, ...],
    embed_dims: tuple[int, ...] = (64, 128, 320, 512),
    mlp_ratio: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
) -> dict[str, Any]:
    shape = dict(embed_dims=embed_dims, depths=depths, num_heads=(1, 2, 5, 8), mlp_ratio=mlp_ratio)
    return dict(shape, sr_ratios=(8, 4, 2, 1), patch=PATCH, norm_epsilon=1e-6)


def stages(model: Any, grid: TokenGrid) -> tuple[StageSpec, ...]:
    """All attention is global; the kernel is that of the convolution inside the MLP."""
    return (StageSpec(kernels=(KERNEL,)),) * len(model.depths)


FAMILY = Family(
    package=__package__,
    sizes={  # table 1
        "pvt_v2_b0": _size((2, 2, 2, 2), (32, 64, 160, 256)),
        "pvt_v2_b1": _size((2, 2, 2, 2)),
        "pvt_v2_b2": _size((3, 4, 6, 3)),
        "pvt_v2_b3": _size((3, 4, 18, 3)),
        "pvt_v2_b4": _size((3, 8, 27, 3)),
        "pvt_v2_b5": _size((3, 6, 40, 3), mlp_ratio=(4.0, 4.0, 4.0, 4.0)),
    },
    settings={"embed_dims": EMBED_DIMS, "num_heads": NUM_HEADS, "sr_ratios": SR_RATIOS},
    channels=channels,
    stages=stages,
    check=check,
    beside_blocks={"patch_embed": "before", "norm": "last"},
    overlapping=True,
    norms_stages=True,
)
