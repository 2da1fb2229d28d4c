"""Pictures of reconstructions: original, visible part, and the visible part with the prediction pasted in."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Num, Shaped, UInt8

from greenjax.data.reading import is_there
from greenjax.evaluation.pictures.canvas import CHAR, Canvas, coloured, shown_channels

GREY = 128  # in place of masked units
NORMALISED = "Reconstructed units are shown with their target's mean and variance, which the model does not predict."

_COLUMNS = ("original", "visible", "reconstruction")
_GAP, _SIDE = 6, 160  # pixels: between pictures, of a picture's longer side at least


class Colours(NamedTuple):
    """How pixels are normalised, `(pixels / scale - mean) / std`, which are no data, and which channels are shown."""

    mean: Sequence[float]
    std: Sequence[float]
    scale: float = 255.0
    no_data: str = "none"
    shown: Sequence[int] = (0, 1, 2)


def sheet(
    images: Num[np.ndarray, "n h w c"],
    visible: Bool[np.ndarray, "n uh uw"],
    prediction: Float[np.ndarray, "n u p"],
    *,
    patch: int,
    colours: Colours,
    normalised: bool,
) -> Canvas:
    """Three pictures an image; arguments as in `paste`.

    The text below says which channels are shown, and that mean and variance are not predicted.
    """
    channels, notes = images.shape[-1], [NORMALISED] if normalised else []
    shown = list(colours.shown)[: shown_channels(channels)]
    if len(shown) < channels:
        which = f"the first {len(shown)}" if shown == list(range(len(shown))) else ", ".join(map(str, shown))
        notes.append(f"Of {channels} channels {which} are shown.")
    reconstruction = paste(images, visible, prediction, patch, colours, normalised)
    if images.dtype != np.uint8:  # whose pictures show `no_data` as a colour
        gone = ~is_there(images, colours.no_data)
        reconstruction = np.where(gone & _pixels(visible, images.shape), np.nan, reconstruction)
        images = np.where(gone, np.nan, images)
    original, pasted = (coloured(column, colours.shown, images) for column in (images, reconstruction))
    return _laid_out(np.stack([original, hide(original, visible), pasted], axis=1), " ".join(notes))


def hide(images: UInt8[np.ndarray, "n h w c"], visible: Bool[np.ndarray, "n uh uw"]) -> UInt8[np.ndarray, "n h w c"]:
    """The images with masked units in grey."""
    return np.where(_pixels(visible, images.shape), images, np.uint8(GREY))


def paste(
    images: Num[np.ndarray, "n h w c"],
    visible: Bool[np.ndarray, "n uh uw"],
    prediction: Float[np.ndarray, "n u p"],
    patch: int,
    colours: Colours,
    normalised: bool,
) -> Num[np.ndarray, "n h w c"]:
    """The images with masked units as predicted: uint8, or floats on the scale of the images.

    `prediction` holds all squares of `patch` pixels a side in raster order, (row, column, channel) inside each, of
    colour-normalised images. `normalised`: the prediction is for squares less their mean and over their deviation,
    which are taken from the image here.
    """
    shift, scale = np.asarray(colours.mean, np.float64), np.asarray(colours.std, np.float64)
    squares = prediction.astype(np.float64)
    if normalised:
        target = _squares((images / colours.scale - shift) / scale, patch)
        target = np.ma.array(target, mask=~_squares(is_there(images, colours.no_data), patch))
        deviation = target.std(axis=-1, keepdims=True, ddof=1).filled(0) if target.shape[-1] > 1 else 0.0
        squares = squares * deviation + target.mean(axis=-1, keepdims=True).filled(0)
    layout = dict(uh=images.shape[1] // patch, p=patch, q=patch)
    pixels = rearrange(squares, "n (uh uw) (p q c) -> n (uh p) (uw q) c", **layout) * scale + shift
    pixels = pixels * colours.scale
    if images.dtype == np.uint8:  # a model that diverged draws black and white, not a warning
        pixels = np.clip(np.nan_to_num(pixels, nan=0.0), 0, 255).round().astype(np.uint8)
    return np.where(_pixels(visible, images.shape), images, pixels)


def _squares(images: Shaped[np.ndarray, "n h w c"], side: int) -> Shaped[np.ndarray, "n u p"]:
    return rearrange(images, "n (uh p) (uw q) c -> n (uh uw) (p q c)", p=side, q=side)


def _pixels(visible: Bool[np.ndarray, "n uh uw"], shape: tuple[int, ...]) -> Bool[np.ndarray, "n h w 1"]:
    unit = shape[1] // visible.shape[1]
    return visible.repeat(unit, axis=1).repeat(unit, axis=2)[..., None]


def _laid_out(pictures: UInt8[np.ndarray, "n three h w 3"], caption: str) -> Canvas:
    """Draws every picture on whole pixels of the sheet: a triple a row, or two for more than four images."""
    n, _, h, w, _ = pictures.shape
    scale = -(-_SIDE // max(h, w))
    cell_h, cell_w = h * scale + _GAP, w * scale + _GAP
    across = 2 if n > 4 else 1
    rows = -(-n // across)
    width = across * (3 * cell_w + 2 * _GAP) - _GAP
    lines = textwrap.wrap(caption, max(20, width // CHAR))
    head, foot = 24, 18 * len(lines) + _GAP
    height = head + rows * cell_h + foot
    canvas = Canvas(width, height)
    for index, triple in enumerate(pictures):
        row, block = divmod(index, across)
        for column, picture in enumerate(triple):
            left = block * (3 * cell_w + 2 * _GAP) + column * cell_w + _GAP
            canvas.picture(picture, left, head + row * cell_h, scale)
            if row == 0:
                canvas.text(left + (cell_w - _GAP) / 2, head - 5, _COLUMNS[column], 9, ha="center", va="bottom")
    canvas.text(_GAP, height - foot, "\n".join(lines))
    return canvas
