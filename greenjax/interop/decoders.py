"""Decoders whose positions have the row's half of the channels first, where ours has the column's."""

import re

import numpy as np
from ml_collections import ConfigDict

from greenjax.errors import InputError
from greenjax.models.decoder import sine_cosine_positions


def positions_transposed(found: np.ndarray | None, config: ConfigDict) -> bool:
    """Is the file's decoder_pos_embed ours with the row's half of the channels first? Raises InputError if neither."""
    if found is None:
        return False
    dim, side = config.decoder.dim, round((found.shape[1] if found.ndim == 3 else 0) ** 0.5)
    if found.shape == (1, side * side, dim):
        expected = sine_cosine_positions(side, side, dim)
        if np.allclose(found[0], expected, atol=1e-5):
            return False
        if np.allclose(np.roll(found[0], dim // 2, axis=1), expected, atol=1e-5):
            return True
    raise InputError(
        f"decoder_pos_embed {list(found.shape)} in the file is not made of sines and cosines as here: expected"
        f" [1, units, {dim}], a half of the channels for the column, one for the row"
    )


# Which axis of a decoder's array runs over the channels between its blocks.
_RESIDUAL = (
    (r"decoder/embed/(kernel|bias)|decoder/blocks/\d+/(attn/proj|mlp/fc2)/(kernel|bias)", -1),
    (r"decoder/mask_token|decoder/(blocks/\d+/)?norm\d?/(scale|bias)", -1),
    (r"decoder/blocks/\d+/(attn/qkv|mlp/fc1)/kernel|decoder/head/kernel", 0),
)


def turned(key: str, value: np.ndarray) -> np.ndarray:
    """Swaps the two halves of the channels between the decoder's blocks: the same function of turned positions."""
    for pattern, axis in _RESIDUAL:
        if re.fullmatch(pattern, key):
            return np.roll(value, value.shape[axis] // 2, axis=axis)
    return value
