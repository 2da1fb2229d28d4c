"""MAE's decoder in files: its positions may have the row's half of the channels first; here the column's is first."""

import re

import numpy as np
from jaxtyping import Float32
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.positions import sine_cosine_positions
from greenjax.backbones.rules import Layout
from greenjax.errors import InputError


def decoder_positions(layout: Layout, config: ConfigDict) -> Float32[np.ndarray, "1 rows c"]:
    """The positions of a decoder as the files of a layout have them."""
    positions = sine_cosine_positions(*token_grid(config).shape(-1), config.decoder.dim)
    return np.pad(positions, ((layout.decoder_positions[1], 0), (0, 0)))[None]


def positions_transposed(found: np.ndarray, layout: Layout, config: ConfigDict) -> bool:
    """Has a file's tensor of positions the row's half first? They are those of the config's grid, or of a square.

    Raises InputError for other positions than MAE's.
    """
    (name, before), dim = layout.decoder_positions, config.decoder.dim
    side = round(max(found.shape[1] - before if found.ndim == 3 else 0, 0) ** 0.5)
    for rows, columns in (token_grid(config).shape(-1), (side, side)):
        if found.shape == (1, before + rows * columns, dim) and np.allclose(found[0, :before], 0, atol=1e-5):
            expected, positions = sine_cosine_positions(rows, columns, dim), found[0, before:]
            if np.allclose(positions, expected, atol=1e-5):
                return False
            if np.allclose(np.roll(positions, dim // 2, axis=1), expected, atol=1e-5):
                return True
    way = "takes trained ones" if layout.fused else "takes the encoder alone"
    raise InputError(
        f"{name} {list(found.shape)} in the file is not made of sines and cosines as here: expected"
        f" [1, {'1 + ' if before else ''}units, {dim}], a half of the channels for the column, one for the row;"
        f" --config.decoder.positions=learned {way}"
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
