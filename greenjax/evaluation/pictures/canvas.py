"""PNG files laid out in pixels: pictures keep their pixels, text stands at a given place."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float, Num, UInt8

from greenjax.data.reading import is_there
from greenjax.runtime.files import replacing

CHAR = 7  # pixels: width of a character of 8 points, about

_DPI = 100


class Canvas:
    """A white sheet. Positions are in pixels from its top left corner."""

    def __init__(self, width: int, height: int):
        self._width, self._height = width, height
        self._figure = make_figure(figsize=(width / _DPI, height / _DPI), facecolor="white")

    def picture(self, pixels: UInt8[np.ndarray, "h w 3"], left: int, top: int, scale: int = 1) -> None:
        """Draws an image: every pixel becomes `scale` x `scale` pixels of the sheet."""
        large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        self._figure.figimage(large, left, self._height - top - len(large), origin="upper")

    def text(self, left: float | int, top: float | int, text: str, size: float | int = 8, **style: Any) -> None:
        """Writes text, its top left corner at the position by default. `size` is in points, `style` matplotlib's."""
        x, y = left / self._width, 1 - top / self._height
        # A dollar in the name of a class or a file begins no formula.
        self._figure.text(x, y, text, fontsize=size, parse_math=False, **{"va": "top", **style})

    def image(self) -> PIL.Image.Image:
        """The sheet as an image, which notebooks show."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        drawn = FigureCanvasAgg(self._figure)
        drawn.draw()
        return PIL.Image.fromarray(np.asarray(drawn.buffer_rgba())[..., :3].copy())

    def save(self, path: str | Path) -> None:
        """Writes a PNG. Raises OSError."""
        save_png(self._figure, path)


def coloured_by(name: str, values: Float[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s 3"]:
    """The colours that a colour map of matplotlib has for values from 0 to 1."""
    from matplotlib import colormaps

    return colormaps[name](values, bytes=True)[..., :3]


def make_figure(**style: Any) -> Any:
    """An empty figure of matplotlib, whose import takes half a second: a start has other things to do first."""
    from matplotlib.figure import Figure

    return Figure(dpi=_DPI, **style)


def save_png(figure: Any, path: str | Path) -> None:
    """Draws a figure into a file, which is written as a whole or not at all. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with replacing(Path(path)) as draft:
        FigureCanvasAgg(figure).print_png(draft)


def coloured(
    images: Num[np.ndarray, "n h w c"],
    rgb: Sequence[int] = (0, 1, 2),
    like: Num[np.ndarray, "n h w c"] | None = None,
    no_data: str = "none",
) -> UInt8[np.ndarray, "n h w 3"]:
    """The images as RGB: the first of one or two channels in grey, or three channels, `rgb` of more than three.

    Pixels that are not uint8 are stretched: black to white is what 96 % of the pixels of an image of `like` span, by
    default of the image itself, in each channel. Among them, pixels without data (NaN, or `no_data`) do not count, and
    are black.
    """
    if not len(images):
        return np.zeros((*images.shape[:3], 3), np.uint8)
    shown = list(rgb) if images.shape[-1] > 3 else [0, 1, 2][: shown_channels(images.shape[-1])]
    pixels = images[..., shown]
    if images.dtype != np.uint8:
        model = pixels if like is None else like[..., shown]
        pixels, model = (np.where(is_there(x, no_data), x, np.nan).astype(np.float64) for x in (pixels, model))
        empty = np.isnan(model).all(axis=(1, 2), keepdims=True)
        low, high = np.nanpercentile(np.where(empty, 0, model), (2, 98), axis=(1, 2), keepdims=True)
        share = (pixels - low) / np.maximum(high - low, 1e-12)
        pixels = np.clip(np.nan_to_num(share * 255, nan=0.0), 0, 255).round().astype(np.uint8)
    return pixels.repeat(3 // len(shown), axis=-1)


def shown_channels(channels: int) -> int:
    return 1 if channels < 3 else 3


def legible(names: Sequence[str], most: int) -> list[str]:
    """Names cut to `most` characters; characters that the font lacks become question marks."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    known = cache(lambda char: char if font.get_char_index(ord(char)) else "?")
    shown = ["".join(map(known, " ".join(name.split()))) for name in names]
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in shown]
