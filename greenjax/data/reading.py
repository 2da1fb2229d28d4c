"""What is taken of a stored image, and as what: its type, channels, opacity, page and missing values."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from mmap import mmap

import numpy as np
from jaxtyping import Bool, Num
from ml_collections import ConfigDict

Size = tuple[int, int]  # height, width in pixels
Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Part = Callable[[Size], tuple[Box, Size]]  # by an image's size: the part of it that a view shows, and its new size
Buffer = bytes | mmap  # the latter for files so large that a view reads a part

DTYPES = ("uint8", "uint16", "int16", "float16", "float32")  # of pixels
ALPHAS = ("drop", "keep", "black", "white")  # what becomes of transparency; the last two: the ground that shows through


@dataclass(frozen=True)
class Reading:
    """What is taken of a stored image, and as what. The default is a picture: 8 bits of grey or RGB."""

    dtype: str = "uint8"
    bands: int | None = None  # channels of an image: None = those of a picture, 1 or 3; 0 = any number
    channels: tuple[int, ...] = ()  # in this order; () = all
    alpha: str = "drop"
    page: int = 0  # -1: all pages, as channels
    no_data: str = "none"  # "none", "nan" or a number: the value of pixels without a measurement

    @property
    def of_picture(self) -> bool:
        """Whether images are read as all viewers show them."""
        return self == replace(PICTURE, no_data=self.no_data)


PICTURE = Reading()


def scale_of(data: ConfigDict) -> float:
    """What pixels are divided by before mean and deviation: data.scale, or the largest value of an integer type."""
    integers = np.dtype(data.dtype).kind in "iu"
    return float(data.scale or (np.iinfo(data.dtype).max if integers else 1))


def is_there(image: Num[np.ndarray, "*s"], no_data: str) -> Bool[np.ndarray, "*s"]:
    """Which values were measured: neither NaN nor `no_data`."""
    measured = ~np.isnan(image)
    return measured if no_data == "none" else measured & (image != image.dtype.type(float(no_data)))


def is_number(text: str) -> bool:
    """Whether a text is a number, or "nan"."""
    try:
        return not np.isinf(float(text))
    except ValueError:
        return False
