"""MAE's decoder in files: its positions may have the row's half of the channels first; here the column's is first."""

import re

import numpy as np
from ml_collections import ConfigDict

from greenjax.errors import InputError
from greenjax.models.decoder import sine_cosine_positions

POSITIONS = "decoder_pos_embed"  # the tensor of fixed positions


def positions_transposed(found: np.ndarray, config: ConfigDict) -> bool:
    """Has a file's tensor of positions the row's half first? Raises InputError for other positions than MAE's."""
    dim, side = config.decoder.dim, round((found.shape[1] if found.ndim == 3 else 0) ** 0.5)
    if found.shape == (1, side * side, dim):
        expected = sine_cosine_positions(side, side, dim)
        if np.allclose(found[0], expected, atol=1e-5):
            return False
        if np.allclose(np.roll(found[0], dim // 2, axis=1), expected, atol=1e-5):
            return True
    raise InputError(
        f"{POSITIONS} {list(found.shape)} in the file is not made of sines and cosines as here: expected"
        f" [1, units, {dim}], a half of the channels for the column, one for the row"
    )


# Which axis of a decoder's array runs over the channels between its blocks.
_RESIDUAL = (
    (r"decoder/embed/(kernel|bias)|decoder/blocks/\d+/(attn/proj|mlp/fc2)/(kernel|bias)", -1),
    (r"decoder/mask_token|decoder/(blocks/\d+/)?norm\d?/(scale|bias)", -1),
    (r"decoder/blocks/\d+/(attn/qkv|mlp/fc1)/kernel|decoder/head/kernel", 0),
)


def turned(key: str, value: np.ndarray) -> np.ndarray:
    """An array of the decoder with the two halves of its blocks' channels swapped, as transposed positions need it."""
    for pattern, axis in _RESIDUAL:
        if re.fullmatch(pattern, key):
            return np.roll(value, value.shape[axis] // 2, axis=axis)
    return value
