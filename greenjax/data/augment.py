"""Views of an image: random resized crop and flip in training, the centre crop in evaluation.

A view takes an image, decoded or not, and returns uint8 [h, w, c] of the configured size.
The device normalises colours.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from greenjax.data.encoded import Box, Image, Size, load
from greenjax.errors import InputError

TRIES = 10  # of a random crop that fits, as in torchvision
LONGEST = 8  # times the view's side: the longest part of an image that a centre crop resizes

Transform = Callable[[UInt8[np.ndarray, "h w c"], int], UInt8[np.ndarray, "h w c"]]  # (image, index) -> image


@dataclass(frozen=True)
class RandomView:
    """Random resized crop and flip, drawn from (seed, index in the global stream) alone."""

    seed: int
    size: tuple[int, int]
    channels: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool
    after: tuple[Transform, ...] = ()  # applied to the view; each draws from (seed, index) too

    @classmethod
    def from_config(cls, config: ConfigDict) -> "RandomView":
        """The training view of a resolved configuration."""
        data, channels = config.data, image_channels(config)
        return cls(config.seed, config.image_size, channels, data.crop_scale, data.crop_ratio, data.flip)

    def __call__(self, image: Image, index: int) -> UInt8[np.ndarray, "h2 w2 c2"]:
        drawn = uniforms(self.seed, index, 2 * TRIES + 3)
        pixels, _ = load(image, lambda size: (self.box(size, drawn), self.size))
        view = to_channels(resize(pixels, self.size), self.channels)
        if self.flip and drawn[-1] < 0.5:
            view = cv2.flip(view, 1).reshape(view.shape)  # 30 times as fast as a copy of NumPy's reversed view
        view = np.ascontiguousarray(view)
        for transform in self.after:
            view = transform(view, index)
        return view

    def box(self, size: Size, drawn: Sequence[float]) -> Box:
        """The crop of an image of this size."""
        return random_box(size, self.scale, self.ratio, drawn)


@dataclass(frozen=True)
class CentreView:
    """Resizes an image until it covers the view, then crops the centre: `share` of the shorter side.

    The resized image is at most about LONGEST times as long as the view: the ends of a longer one are cut off first.
    """

    size: tuple[int, int]
    channels: int
    share: float = 1.0

    @classmethod
    def from_config(cls, config: ConfigDict) -> "CentreView":
        """The held-out view of a resolved configuration."""
        return cls(config.image_size, image_channels(config), config.data.eval_crop)

    def __call__(self, image: Image, index: int) -> UInt8[np.ndarray, "h2 w2 c2"]:
        pixels, covering = load(image, self.cover)
        view, (height, width) = resize(pixels, covering), self.size
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        return np.ascontiguousarray(to_channels(view[top : top + height, left : left + width], self.channels))

    def cover(self, size: Size) -> tuple[Box, Size]:
        """The part of an image that is resized, all of it unless it is too long, and its new size."""
        (height, width), (rows, columns) = size, self.size
        scale = max(rows / height, columns / width) / self.share
        # Both ends are cut alike, so that the centre stays.
        top = max(0, height - math.ceil(LONGEST * rows / scale)) // 2
        left = max(0, width - math.ceil(LONGEST * columns / scale)) // 2
        height, width = height - 2 * top, width - 2 * left
        return (top, left, height, width), (max(rows, round(height * scale)), max(columns, round(width * scale)))


def generator(seed: int, index: int, part: int = 0) -> np.random.Generator:
    """Random numbers for image `index` of the global stream. `part` names a use: crop 0, RandAugment 1, erasing 2."""
    # Philox keyed by (seed, index) is a stream for each image, made in microseconds. Parts begin 2^192 blocks apart.
    return np.random.Generator(np.random.Philox(counter=part << 192, key=(seed, index)))


class _Generators(threading.local):
    """One generator a thread: making one takes ten times as long as setting its state."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.bits)


_GENERATORS = _Generators()


def uniforms(seed: int, index: int, count: int) -> list[float]:
    """The numbers of generator(seed, index).random(count), faster."""
    key, zeros = (seed, index), (0, 0, 0, 0)
    state: Any = {"bit_generator": "Philox", "state": {"counter": zeros, "key": key}, "buffer": zeros}
    state |= {"buffer_pos": 4, "has_uint32": 0, "uinteger": 0}  # an empty buffer
    _GENERATORS.bits.state = state
    return _GENERATORS.generator.random(count).tolist()


def random_box(
    size: Size, scale: tuple[float, float], ratio: tuple[float, float], uniforms: Sequence[float] | np.ndarray
) -> Box:
    """A random crop by torchvision's rule: where none of TRIES fits, the largest centre crop within `ratio`."""
    return fitting_box(size, scale, ratio, uniforms) or centre_box(size, ratio)


def fitting_box(
    size: Size, scale: tuple[float, float], ratio: tuple[float, float], uniforms: Sequence[float] | np.ndarray
) -> Box | None:
    """A box of random area (in `scale`, shares of the image) and width / height (in `ratio`, log-uniform).

    Takes the first of TRIES boxes that fits into the image. `uniforms` are 2 * TRIES + 2 numbers, or more.
    """
    height, width = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect in zip(uniforms[:TRIES], uniforms[TRIES : 2 * TRIES]):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = uniforms[2 * TRIES : 2 * TRIES + 2]
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    return None


def centre_box(size: tuple[int, int], ratio: tuple[float, float]) -> Box:
    """The largest centred crop whose width / height lies in `ratio`."""
    height, width = size
    h = max(1, min(height, round(width / ratio[0])))
    w = max(1, min(width, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: UInt8[np.ndarray, "h w c"], size: Size) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Enlarges bicubically; shrinks without aliasing, which OpenCV's bicubic alone would not.

    Shrinking by two or more averages pixels. Below a factor of two averaging takes three times as long as the filters
    here: up to 1.6 linear interpolation is low-pass enough, above it bicubic interpolation after the filter [1 2 1].
    tests/test_data_resize.py compares each with Pillow's bicubic; docs/input_speed.md has the figures.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    down, across = image.shape[0] / height, image.shape[1] / width
    least, mean, most = min(down, across), (down + across) / 2, max(down, across)
    how = cv2.INTER_CUBIC
    if least >= 2 or (least >= 1 and most > 2.5):
        how = cv2.INTER_AREA
    elif mean > 1.6:
        taps = 3 if across > 1.3 else 1, 3 if down > 1.3 else 1
        image = cv2.GaussianBlur(image, taps, 0, borderType=cv2.BORDER_REPLICATE)
    elif mean > 1.13 and least >= 1:
        how = cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=how)
    return resized.reshape(height, width, -1)  # OpenCV drops a single channel


def to_channels(image: UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w c2"]:
    """The image with `channels` channels: grey becomes RGB, or RGB grey."""
    if image.shape[2] == channels:
        return image
    if (image.shape[2], channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (image.shape[2], channels) == (3, 1):
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None]
    raise ValueError(f"an image of {image.shape[2]} channels cannot become one of {channels}")


def image_channels(config: ConfigDict) -> int:
    """Channels of the model's input; sources give grey or RGB images."""
    if config.model.in_channels not in (1, 3):
        raise InputError(f"model.in_channels is {config.model.in_channels}: expected 1 or 3: images are grey or RGB")
    return config.model.in_channels
