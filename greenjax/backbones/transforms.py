"""How the arrays of a module change on their way to PyTorch and back. NumPy only; the way back undoes every bit.

A `Part` says which arrays of a module here become which tensors of a module there. PyTorch keeps a matrix as
(out, in) and a convolution as (out, in, row, column); greenjax as (in, out) and (row, column, in, out).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Shaped
from ml_collections import ConfigDict

Arrays = tuple[Shaped[np.ndarray, "..."], ...]


class Part(NamedTuple):
    """Arrays that are converted together. `to_torch` and `from_torch` take a resolved config, then the arrays."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_torch: Callable[..., Arrays]
    from_torch: Callable[..., Arrays]


Kind = tuple[Part, ...]


def one(ours: str, theirs: str, to_torch: Callable[..., np.ndarray], from_torch: Callable[..., np.ndarray]) -> Part:
    return Part((ours,), (theirs,), lambda c, x: (to_torch(c, x),), lambda c, x: (from_torch(c, x),))


def same(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    return x


def _transposed(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    return x.T


def _patches_to_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    p = config.model.patch
    return rearrange(x, "(p q c) d -> d c p q", p=p, q=p)


def _patches_from_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    return rearrange(x, "d c p q -> (p q c) d")


def _conv_to_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    return x.transpose(3, 2, 0, 1)


def _conv_from_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0)


_BIAS = one("bias", "bias", same, same)

LINEAR: Kind = (one("kernel", "weight", _transposed, _transposed), _BIAS)
MATRIX: Kind = LINEAR[:1]  # without a bias
NORM: Kind = (one("scale", "weight", same, same), _BIAS)
CONV: Kind = (one("kernel", "weight", _conv_to_torch, _conv_from_torch), _BIAS)
PATCHES: Kind = (one("kernel", "weight", _patches_to_torch, _patches_from_torch), _BIAS)
POSITION_BIAS: Kind = (one("relative_position_bias_table", "relative_position_bias_table", same, same),)


# A transposed convolution; PyTorch keeps it as (in, out, row, column).
UPSAMPLING: Kind = (
    one("kernel", "weight", lambda c, x: x.transpose(2, 3, 0, 1), lambda c, x: x.transpose(2, 3, 0, 1)),
    _BIAS,
)


def token(name: str) -> Kind:
    """A learnt token: (c,) here, (1, 1, c) there."""
    to_torch, from_torch = (lambda c, x: x[None, None]), (lambda c, x: x[0, 0])
    return (one("mask_token", name, to_torch, from_torch),)


# The 4 c inputs of a patch merging, by the names of their orders; arrays here have OWN_ORDER.
OWN_ORDER = "swin"
_ORDERS = {OWN_ORDER: "col row c", "raster": "row col c", "unfold": "c row col"}


def _merged(order: str) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """The permutation of the first axis of a norm's or a kernel's array, there and back."""
    ours, theirs = _ORDERS[OWN_ORDER], _ORDERS[order]
    sides = dict(row=2, col=2)
    return (
        lambda c, x: rearrange(x, f"({ours}) ... -> ({theirs}) ...", **sides),
        lambda c, x: rearrange(x, f"({theirs}) ... -> ({ours}) ...", **sides),
    )


def merge_norm(order: str) -> Kind:
    """The norm over the 4 c inputs of a patch merging."""
    to_torch, from_torch = _merged(order)
    return (one("scale", "weight", to_torch, from_torch), one("bias", "bias", to_torch, from_torch))


def merge_reduction(order: str) -> Kind:
    """The matrix that takes the 4 c inputs of a patch merging to 2 c."""
    to_torch, from_torch = _merged(order)
    return (one("kernel", "weight", lambda c, x: to_torch(c, x).T, lambda c, x: from_torch(c, x.T)),)


def thirds(config: ConfigDict, x: np.ndarray) -> Arrays:
    return tuple(part.T for part in np.split(x, 3, axis=-1))


def joined(config: ConfigDict, *parts: np.ndarray) -> Arrays:
    return (np.concatenate([part.T for part in parts], axis=-1),)


_QKV = ("query", "key", "value")
# transformers keeps the three projections apart.
SPLIT_QKV: Kind = tuple(
    Part((f"qkv/{ours}",), tuple(f"{name}.{theirs}" for name in _QKV), thirds, joined)
    for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
)


def _pixels_to_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    """(..., row column channel) -> (channel row column, ...), the order of nn.PixelShuffle."""
    return rearrange(x, "... (pixel c) -> (c pixel) ...", c=config.model.in_channels)


def _pixels_from_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    return rearrange(x, "(c pixel) ... -> ... (pixel c)", c=config.model.in_channels)


# SimMIM's head: a 1 x 1 convolution to the pixels of a unit, which nn.PixelShuffle puts into their places.
PIXEL_SHUFFLE: Kind = (
    one(
        "kernel",
        "weight",
        lambda c, x: _pixels_to_torch(c, x)[:, :, None, None],
        lambda c, x: _pixels_from_torch(c, x[:, :, 0, 0]),
    ),
    one("bias", "bias", _pixels_to_torch, _pixels_from_torch),
)


def _plain_conv_to_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    kernel = _conv_to_torch(config, x).astype(np.float64)  # in float32 the sum would be rounded
    kernel[..., 1, 1] += 1
    return kernel


def _plain_conv_from_torch(config: ConfigDict, x: np.ndarray) -> np.ndarray:
    kernel = _conv_from_torch(config, x).astype(np.float64)
    kernel[1, 1] -= 1
    return kernel


# x + conv(x) as one convolution: its middle weight is larger by 1.
PLAIN_CONV: Kind = (one("kernel", "weight", _plain_conv_to_torch, _plain_conv_from_torch), _BIAS)
