"""What Swin Transformer V2 (arXiv 2111.09883) states of itself: the geometry of Swin, with other sizes."""

from dataclasses import replace

from greenjax.backbones.swin import family as swin

WINDOW = 8  # for images of 256 pixels

FAMILY = replace(
    swin.FAMILY,
    package=__package__,
    any_window=True,  # section 3.3: the bias is a function of the offset
    undecayed=frozenset({"position_mlp"}),  # as the official code has it: it stands for a table of biases
    sizes={  # section 3.5
        "swinv2_t": swin.size(96, (2, 2, 6, 2), (3, 6, 12, 24), WINDOW),
        "swinv2_s": swin.size(96, (2, 2, 18, 2), (3, 6, 12, 24), WINDOW),
        "swinv2_b": swin.size(128, (2, 2, 18, 2), (4, 8, 16, 32), WINDOW),
        "swinv2_l": swin.size(192, (2, 2, 18, 2), (6, 12, 24, 48), WINDOW),
    },
)
