"""What `model.name` stands for. A key set in the config overrides its part; a part that is not here can't be set.

Swin: arXiv 2103.14030, section 3.3. Twins-SVT and Twins-PCPVT: arXiv 2104.13840, sections 3 and 4 and appendix.
"""

from typing import Any


def _swin(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...]) -> dict[str, Any]:
    shape = dict(embed_dim=embed_dim, depths=depths, num_heads=num_heads, mlp_ratio=4.0)
    return dict(shape, patch=4, window=7, norm_epsilon=1e-5)


def _twins(embed_dims: tuple[int, ...], depths: tuple[int, ...], num_heads: tuple[int, ...]) -> dict[str, Any]:
    shape = dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratio=4.0, sr_ratios=(8, 4, 2, 1))
    return dict(shape, patch=4, window=7, norm_epsilon=1e-6)


def _pcpvt(depths: tuple[int, ...]) -> dict[str, Any]:
    shape = dict(_twins((64, 128, 320, 512), depths, (1, 2, 5, 8)), mlp_ratio=(8.0, 8.0, 4.0, 4.0))
    del shape["window"]  # all of its attention is global
    return shape


ARCHITECTURES = {
    "swin_t": _swin(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_s": _swin(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_b": _swin(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_l": _swin(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "twins_s": _twins((64, 128, 256, 512), (2, 2, 10, 4), (2, 4, 8, 16)),
    "twins_b": _twins((96, 192, 384, 768), (2, 2, 18, 2), (3, 6, 12, 24)),
    "twins_l": _twins((128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)),
    "pcpvt_s": _pcpvt((3, 4, 6, 3)),
    "pcpvt_b": _pcpvt((3, 4, 18, 3)),
    "pcpvt_l": _pcpvt((3, 8, 27, 3)),
}
