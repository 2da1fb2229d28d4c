"""PNG files laid out in pixels: pictures keep theirs, text stands where it is put."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from greenjax.runtime.files import replacing

CHAR = 7  # pixels that a character of 8 points takes, about

_DPI = 100


class Canvas:
    """A white sheet; places are pixels from its top left corner."""

    def __init__(self, width: int, height: int):
        self._width, self._height = width, height
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")

    def picture(self, pixels: UInt8[np.ndarray, "h w 3"], left: int, top: int, scale: int = 1) -> None:
        """Every pixel becomes `scale` x `scale` pixels of the sheet."""
        large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        self._figure.figimage(large, left, self._height - top - len(large), origin="upper")

    def text(self, left: float | int, top: float | int, text: str, size: float | int = 8, **style: Any) -> None:
        """`size` in points; `style` is matplotlib's. The place is that of the text's top left corner by default."""
        x, y = left / self._width, 1 - top / self._height
        # Names of classes and files are not formulas, whatever dollars are in them.
        self._figure.text(x, y, text, fontsize=size, parse_math=False, **{"va": "top", **style})

    def save(self, path: str | Path) -> None:
        """Writes a PNG. Raises OSError."""
        save_png(self._figure, path)


def save_png(figure: Figure, path: str | Path) -> None:
    """Draws a figure into a file, which is written as a whole or not at all. Raises OSError."""
    with replacing(Path(path)) as draft:
        FigureCanvasAgg(figure).print_png(draft)


def coloured(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Of one or two channels the first in grey, of more the first three as red, green, blue."""
    shown = shown_channels(images.shape[-1])
    return images[..., :shown].repeat(3 // shown, axis=-1)


def shown_channels(channels: int) -> int:
    return 1 if channels < 3 else 3


def legible(names: Sequence[str], most: int) -> list[str]:
    """Names of at most `most` characters, all of which the font has; the others become question marks."""
    font = get_font(findfont("DejaVu Sans"))
    known = cache(lambda char: char if font.get_char_index(ord(char)) else "?")
    shown = ["".join(map(known, " ".join(name.split()))) for name in names]
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in shown]
