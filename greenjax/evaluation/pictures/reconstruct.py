"""Pictures of reconstructions: original, visible part, and the visible part with the prediction pasted in."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, UInt8

from greenjax.evaluation.pictures.canvas import CHAR, Canvas, coloured, shown_channels

GREY = 128  # in place of masked units
NORMALISED = "Reconstructed units are shown with their target's mean and variance, which the model does not predict."

_COLUMNS = ("original", "visible", "reconstruction")
_GAP, _SIDE = 6, 160  # pixels: between pictures, of a picture's longer side at least


def draw_reconstructions(
    path: str | Path,
    images: UInt8[np.ndarray, "n h w c"],
    visible: Bool[np.ndarray, "n uh uw"],
    prediction: Float[np.ndarray, "n u p"],
    *,
    unit: int,
    mean: Sequence[float],
    std: Sequence[float],
    normalised: bool,
) -> None:
    """Writes a PNG with three pictures an image; arguments as in `paste`.

    The text below says which channels are shown, and that mean and variance are not predicted.
    """
    channels = images.shape[-1]
    shown = shown_channels(channels)
    notes = [NORMALISED] if normalised else []
    if shown < channels:
        notes.append(f"Of {channels} channels the first {shown} are shown.")
    reconstruction = paste(images, visible, prediction, unit, mean, std, normalised)
    columns = [coloured(column) for column in (images, hide(images, visible, unit), reconstruction)]
    _draw(Path(path), np.stack(columns, axis=1), " ".join(notes))


def hide(
    images: UInt8[np.ndarray, "n h w c"], visible: Bool[np.ndarray, "n uh uw"], unit: int
) -> UInt8[np.ndarray, "n h w c"]:
    """The images with masked units in grey."""
    return np.where(_pixels(visible, unit), images, np.uint8(GREY))


def paste(
    images: UInt8[np.ndarray, "n h w c"],
    visible: Bool[np.ndarray, "n uh uw"],
    prediction: Float[np.ndarray, "n u p"],
    unit: int,
    mean: Sequence[float],
    std: Sequence[float],
    normalised: bool,
) -> UInt8[np.ndarray, "n h w c"]:
    """The images with masked units as predicted.

    `prediction` holds all units in raster order, (row, column, channel) inside a unit, of images that are
    colour-normalised with `mean` and `std`. `normalised`: the prediction is for units less their mean and over their
    deviation, which are taken from the image here.
    """
    shift, scale = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    units = prediction.astype(np.float64)
    if normalised:
        target = _units((images / 255 - shift) / scale, unit)
        deviation = target.std(axis=-1, keepdims=True, ddof=1) if target.shape[-1] > 1 else 0.0
        units = units * deviation + target.mean(axis=-1, keepdims=True)
    layout = dict(uh=visible.shape[1], p=unit, q=unit)
    pixels = rearrange(units, "n (uh uw) (p q c) -> n (uh p) (uw q) c", **layout) * scale + shift
    # A model that diverged draws black and white, not a warning.
    pixels = np.clip(np.nan_to_num(pixels * 255, nan=0.0), 0, 255).round().astype(np.uint8)
    return np.where(_pixels(visible, unit), images, pixels)


def _units(images: Float[np.ndarray, "n h w c"], unit: int) -> Float[np.ndarray, "n u p"]:
    return rearrange(images, "n (uh p) (uw q) c -> n (uh uw) (p q c)", p=unit, q=unit)


def _pixels(visible: Bool[np.ndarray, "n uh uw"], unit: int) -> Bool[np.ndarray, "n h w 1"]:
    return visible.repeat(unit, axis=1).repeat(unit, axis=2)[..., None]


def _draw(path: Path, pictures: UInt8[np.ndarray, "n three h w 3"], caption: str) -> None:
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
    canvas.save(path)
