"""Views of an image: random resized crop and flip in training, the centre crop in evaluation.

A view takes an image, decoded or not, and returns pixels [h, w, c] of the configured size and type, all of them finite
or without data. The device normalises them.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from jaxtyping import Num
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Image, load
from greenjax.data.reading import PICTURE, Box, Reading, Size, is_there
from greenjax.errors import InputError

TRIES = 10  # of a random crop that fits, as in torchvision
AT_ONCE = 4  # channels that every function of OpenCV takes
LONGEST = 8  # times the view's side: the longest part of an image that a centre crop resizes

Transform = Callable[[Num[np.ndarray, "h w c"], int], Num[np.ndarray, "h w c"]]  # (image, index) -> image


@dataclass(frozen=True)
class RandomView:
    """Random resized crop, flip and quarter turn, drawn from (seed, index in the global stream) alone."""

    seed: int
    size: tuple[int, int]
    channels: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool
    after: tuple[Transform, ...] = ()  # applied to the view; each draws from (seed, index) too
    reading: Reading = PICTURE
    quarter_turns: bool = False

    @classmethod
    def from_config(cls, config: ConfigDict) -> "RandomView":
        """The training view of a resolved configuration."""
        data, channels, reading = config.data, config.model.in_channels, reading_of(config)
        crop = data.crop_scale, data.crop_ratio
        view = cls(config.seed, config.image_size, channels, *crop, data.flip, reading=reading)
        return replace(view, quarter_turns=data.quarter_turns)

    def __call__(self, image: Image, index: int) -> Num[np.ndarray, "h2 w2 c2"]:
        *drawn, flip, turns = uniforms(self.seed, index, 2 * TRIES + 4)
        pixels, _ = load(image, lambda size: (self.box(size, drawn), self.size), self.reading)
        view = to_channels(resize(pixels, self.size, self.reading.no_data), self.channels)
        check_measured(view, self.reading.no_data)
        if self.flip and flip < 0.5:
            view = flipped(view)
        if self.quarter_turns:
            view = np.rot90(view, int(4 * turns))
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
    reading: Reading = PICTURE

    @classmethod
    def from_config(cls, config: ConfigDict) -> "CentreView":
        """The held-out view of a resolved configuration."""
        channels, reading = config.model.in_channels, reading_of(config)
        return cls(config.image_size, channels, config.data.eval_crop, reading)

    def __call__(self, image: Image, index: int) -> Num[np.ndarray, "h2 w2 c2"]:
        pixels, covering = load(image, self.cover, self.reading)
        view, (height, width) = resize(pixels, covering, self.reading.no_data), self.size
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        view = to_channels(view[top : top + height, left : left + width], self.channels)
        check_measured(view, self.reading.no_data)
        return np.ascontiguousarray(view)

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


def resize(image: Num[np.ndarray, "h w c"], size: Size, no_data: str = "none") -> Num[np.ndarray, "h2 w2 c"]:
    """The image in a new size, of the same type. A pixel that any `no_data` would enter is `no_data`.

    Raises DecodeError beside `no_data` for infinite values: their differences are NaN, as if they were missing.
    """
    if image.shape[:2] == size:
        return image
    if no_data == "none":
        return resized(image, size)
    check_measured(image, no_data)
    there = is_there(image, no_data)
    if there.all():
        return resized(image, size)
    filled = np.where(there, image, image[there].mean(dtype=np.float64).astype(image.dtype) if there.any() else 0)
    result, share = resized(filled.astype(image.dtype), size), resized(there.astype(np.float32), size)
    result[np.abs(share - 1) > 1e-3] = float(no_data)  # above 1 where bicubic weights are negative
    return result


def resized(image: Num[np.ndarray, "h w c"], size: Size) -> Num[np.ndarray, "h2 w2 c"]:
    """Enlarges bicubically; shrinks without aliasing, which OpenCV's bicubic alone would not.

    Shrinking by two or more averages pixels. Below a factor of two averaging takes three times as long as the filters
    here: up to 1.6 linear interpolation is low-pass enough, above it bicubic interpolation after the filter [1 2 1].
    tests/test_data_resize.py compares each with Pillow's bicubic; docs/input_speed.md has the figures.
    """
    if image.dtype == np.float16:  # unknown to OpenCV
        return resized(image.astype(np.float32), size).astype(np.float16)
    if image.shape[2] > AT_ONCE:
        parts = np.split(image, range(AT_ONCE, image.shape[2], AT_ONCE), axis=2)
        return np.concatenate([resized(np.ascontiguousarray(part), size) for part in parts], axis=2)
    height, width = size
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
    return cv2.resize(image, size[::-1], interpolation=how).reshape(height, width, -1)  # OpenCV drops a single channel


def check_measured(pixels: Num[np.ndarray, "h w c"], no_data: str) -> None:
    """Raises DecodeError for a measured value that is not finite: one image with it would spoil its whole batch."""
    if pixels.dtype.kind != "f" or np.isfinite(pixels).all():
        return
    if (is_there(pixels, no_data) & np.isinf(pixels)).any():  # first: resizing makes NaN of them, too
        raise DecodeError("it has infinite values: expected numbers")
    if no_data == "none":
        raise DecodeError("it has NaN: expected numbers (data.no_data=nan makes NaN a missing value)")


def flipped(image: Num[np.ndarray, "h w c"]) -> Num[np.ndarray, "h w c"]:
    """The image with left and right exchanged."""
    if image.shape[2] > AT_ONCE:
        return image[:, ::-1]
    return cv2.flip(image, 1).reshape(image.shape)  # 30 times as fast as a copy of NumPy's reversed view


def to_channels(image: Num[np.ndarray, "h w c"], channels: int) -> Num[np.ndarray, "h w c2"]:
    """The image with `channels` channels: grey becomes RGB, or RGB grey. Raises DecodeError for other numbers."""
    if image.shape[2] == channels:
        return image
    if (image.shape[2], channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (image.shape[2], channels) == (3, 1) and image.dtype == np.uint8:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None]
    raise DecodeError(f"it has {image.shape[2]} channels: expected {channels} (model.in_channels, data.channels)")


def reading_of(config: ConfigDict) -> Reading:
    """What a resolved configuration takes of stored images."""
    data, channels = config.data, config.model.in_channels
    bands = 0 if data.channels else None if channels in (1, 3) else channels
    return Reading(data.dtype, bands, data.channels, data.alpha, data.page, data.no_data)


def image_channels(config: ConfigDict) -> int:
    """Channels of the input of a model for pictures. Raises InputError where it takes other images."""
    if config.model.in_channels not in (1, 3):
        raise InputError(f"model.in_channels is {config.model.in_channels}: expected 1 or 3: images are grey or RGB")
    return config.model.in_channels
