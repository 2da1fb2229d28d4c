"""What Twins-SVT and Twins-PCPVT (arXiv 2104.13840) state of themselves. PCPVT is Twins without windows."""

from typing import Any

from greenjax.backbones.family import Family, check_heads, refuse_part, square_windows
from greenjax.backbones.settings import EMBED_DIMS, NUM_HEADS, SR_RATIOS, WINDOW
from greenjax.errors import InputError
from greenjax.planning import StageSpec, TokenGrid, Windows

EPSILON = 1e-5  # of the norms behind convolutions; all other norms have model.norm_epsilon


def _svt(embed_dims: tuple[int, ...], depths: tuple[int, ...], num_heads: tuple[int, ...]) -> dict[str, Any]:
    shape = dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratio=4.0, sr_ratios=(8, 4, 2, 1))
    return dict(shape, patch=4, window=7, norm_epsilon=1e-6)


def _pcpvt(depths: tuple[int, ...]) -> dict[str, Any]:
    shape = dict(_svt((64, 128, 320, 512), depths, (1, 2, 5, 8)), mlp_ratio=(8.0, 8.0, 4.0, 4.0))
    del shape["window"]  # all of its attention is global
    return shape


def channels(model: Any) -> tuple[int, ...]:
    return model.embed_dims


def stages(model: Any, grid: TokenGrid) -> tuple[StageSpec, ...]:
    """Every second block has windows, which never shift; the kernel is that of the positional encoding generator."""

    def windows(stage: int, depth: int) -> tuple[Windows, ...]:
        if model.window is None:
            return ()
        return square_windows(model.window, grid.shape(stage), (depth + 1) // 2, shifted=False, padded=grid.padded)

    if not grid.whole:
        size = grid.height, grid.width
        raise InputError(f"image_size is {size}: expected multiples of {grid.unit} for a Twins, with any model.border")
    return tuple(StageSpec(windows(stage, depth), kernels=(3,)) for stage, depth in enumerate(model.depths))


def check(model: Any) -> None:
    """Heads divide channels, and a block of sub-sampled tokens lies inside one mask unit."""
    check_heads(model, channels(model))
    for stage, ratio in enumerate(model.sr_ratios):
        side = 2 ** (len(model.depths) - 1 - stage)
        if ratio & (ratio - 1) or ratio > side:
            allowed = f"a power of two, at most the {side} tokens along a mask unit of stage {stage + 1}"
            refuse_part(model, "sr_ratios", f"{allowed}, in place of {ratio}")


FAMILY = Family(
    package=__package__,
    sizes={  # sections 3 and 4, and appendix
        "twins_s": _svt((64, 128, 256, 512), (2, 2, 10, 4), (2, 4, 8, 16)),
        "twins_b": _svt((96, 192, 384, 768), (2, 2, 18, 2), (3, 6, 12, 24)),
        "twins_l": _svt((128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)),
        "pcpvt_s": _pcpvt((3, 4, 6, 3)),
        "pcpvt_b": _pcpvt((3, 4, 18, 3)),
        "pcpvt_l": _pcpvt((3, 8, 27, 3)),
    },
    settings={
        "window": WINDOW,
        "embed_dims": EMBED_DIMS,
        "num_heads": NUM_HEADS,
        "sr_ratios": SR_RATIOS,
    },
    channels=channels,
    stages=stages,
    check=check,
    beside_blocks={"patch_embed": "before", "peg": "first"},
    pads=True,
    undecayed=frozenset({"peg"}),  # depth-wise: its kernel mixes no channels
)
