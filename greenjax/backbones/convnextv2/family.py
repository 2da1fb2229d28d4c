"""What ConvNeXt V2 (arXiv 2301.00808) states of itself: the geometry of ConvNeXt, with other sizes."""

from dataclasses import replace

from greenjax.backbones.convnext import family as convnext
from greenjax.backbones.convnext.family import size

FAMILY = replace(
    convnext.FAMILY,
    package=__package__,
    sizes={  # appendix A.1
        "convnextv2_atto": size(40, (2, 2, 6, 2)),
        "convnextv2_femto": size(48, (2, 2, 6, 2)),
        "convnextv2_pico": size(64, (2, 2, 6, 2)),
        "convnextv2_nano": size(80, (2, 2, 8, 2)),
        "convnextv2_tiny": size(96, (3, 3, 9, 3)),
        "convnextv2_base": size(128, (3, 3, 27, 3)),
        "convnextv2_large": size(192, (3, 3, 27, 3)),
        "convnextv2_huge": size(352, (3, 3, 27, 3)),
    },
)
