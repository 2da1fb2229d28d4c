"""What Swin Transformer V2 (arXiv 2111.09883) states of itself: the geometry of Swin, with other sizes."""

from dataclasses import replace
from typing import Any

from greenjax.backbones.settings import Key
from greenjax.backbones.swin import family as swin
from greenjax.planning import TokenGrid


def _size(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...]) -> dict[str, Any]:
    """With windows for images of 256 pixels."""
    return dict(swin.size(embed_dim, depths, num_heads, window=8), pretrained_windows=None)


PRETRAINED_WINDOWS = Key(
    tuple[int, ...],
    None,
    "whole numbers, 0 or at least 2, one a stage; zeros = not given",
    lambda values: min(values, default=0) >= 0 and 1 not in values,
    by_stage=True,
    free=True,
    meaning="windows that the network of the position bias was trained with, one a stage; 0 = the window of the stage",
)


def pretrained_windows(model: Any, grid: TokenGrid) -> tuple[int, ...]:
    """The windows that offsets are divided by, one a stage; 0 for a window of one token, which has no offsets."""
    sides = [spec.windows[0].rows for spec in swin.stages(model, grid)]
    given = model.pretrained_windows or (0,) * len(sides)
    return tuple(each or (side if side > 1 else 0) for each, side in zip(given, sides))


FAMILY = replace(
    swin.FAMILY,
    package=__package__,
    any_window=True,  # section 3.3: the bias is a function of the offset
    kept={"pretrained_windows": pretrained_windows},
    undecayed=frozenset({"position_mlp"}),  # as the official code has it: it stands for a table of biases
    sizes={  # section 3.5
        "swinv2_t": _size(96, (2, 2, 6, 2), (3, 6, 12, 24)),
        "swinv2_s": _size(96, (2, 2, 18, 2), (3, 6, 12, 24)),
        "swinv2_b": _size(128, (2, 2, 18, 2), (4, 8, 16, 32)),
        "swinv2_l": _size(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    },
    settings={**swin.FAMILY.settings, "pretrained_windows": PRETRAINED_WINDOWS},
)
