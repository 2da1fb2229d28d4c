"""What is done to an image: random resized crop and flip in training, the centre crop when it is held out.

Images go in as decoded and come out as uint8 [h, w, c] of the configured size; the device normalises colours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from greenjax.errors import InputError

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

TRIES = 10  # of a random crop that fits, as in torchvision

Step = Callable[[UInt8[np.ndarray, "h w c"], int], UInt8[np.ndarray, "h w c"]]  # (image, index) -> image


@dataclass(frozen=True)
class RandomView:
    """Random resized crop and flip, drawn from (seed, index in the global stream) and from nothing else."""

    seed: int
    size: tuple[int, int]
    channels: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool
    after: tuple[Step, ...] = ()  # what is done then, each drawing by (seed, index) too

    @classmethod
    def from_config(cls, config: ConfigDict) -> "RandomView":
        """The training view of a resolved configuration."""
        data, channels = config.data, image_channels(config)
        return cls(config.seed, config.image_size, channels, data.crop_scale, data.crop_ratio, data.flip)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], index: int) -> UInt8[np.ndarray, "h2 w2 c2"]:
        uniforms = generator(self.seed, index).random(2 * TRIES + 3)
        top, left, height, width = random_box(image.shape[:2], self.scale, self.ratio, uniforms[:-1])
        view = resize(image[top : top + height, left : left + width], self.size)
        if self.flip and uniforms[-1] < 0.5:
            view = view[:, ::-1]
        view = np.ascontiguousarray(to_channels(view, self.channels))
        for step in self.after:
            view = step(view, index)
        return view


@dataclass(frozen=True)
class CentreView:
    """Resizes until the size is covered, then crops the centre: `share` of the shorter side, 1 = just covered."""

    size: tuple[int, int]
    channels: int
    share: float = 1.0

    @classmethod
    def from_config(cls, config: ConfigDict) -> "CentreView":
        """The held-out view of a resolved configuration."""
        return cls(config.image_size, image_channels(config), config.data.eval_crop)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], index: int) -> UInt8[np.ndarray, "h2 w2 c2"]:
        height, width = self.size
        scale = max(height / image.shape[0], width / image.shape[1]) / self.share
        covering = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
        view = resize(image, covering)
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        return np.ascontiguousarray(to_channels(view[top : top + height, left : left + width], self.channels))


def generator(seed: int, index: int, part: int = 0) -> np.random.Generator:
    """Random numbers for one part of what is done to image `index` of the global stream."""
    # Philox takes (seed, index) as its key: a stream for every image, at the cost of microseconds. Parts begin
    # so far from each other in it (2^192 blocks) that they never meet.
    return np.random.Generator(np.random.Philox(counter=part << 192, key=(seed, index)))


def random_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], uniforms: np.ndarray
) -> Box:
    """A random crop; torchvision's rule: where none of ten fits, the largest centre crop within `ratio`."""
    return fitting_box(size, scale, ratio, uniforms) or centre_box(size, ratio)


def fitting_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], uniforms: np.ndarray
) -> Box | None:
    """A box of random area (in `scale`, shares of the image) and width / height (in `ratio`, log-uniform).

    The first of TRIES that fits into the image. `uniforms` are 2 * TRIES + 2.
    """
    height, width = size
    low, high = np.log(ratio)
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[:TRIES])
    ratios = np.exp(low + (high - low) * uniforms[TRIES : 2 * TRIES])
    widths = np.round(np.sqrt(areas * ratios)).astype(int)
    heights = np.round(np.sqrt(areas / ratios)).astype(int)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if not fits.any():
        return None
    h, w = int(heights[fits.argmax()]), int(widths[fits.argmax()])
    top, left = uniforms[2 * TRIES : 2 * TRIES + 2] * (height - h + 1, width - w + 1)
    return int(top), int(left), h, w


def centre_box(size: tuple[int, int], ratio: tuple[float, float]) -> Box:
    """The largest centred crop whose width / height lies in `ratio`."""
    height, width = size
    h = max(1, min(height, round(width / ratio[0])))
    w = max(1, min(width, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: UInt8[np.ndarray, "h w c"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Bicubic; where both sides shrink, pixels are averaged, for OpenCV's bicubic would alias."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return resized.reshape(height, width, image.shape[2])  # OpenCV drops a single channel


def to_channels(image: UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w c2"]:
    """Grey to RGB or RGB to grey, where the image has not the wanted number of channels."""
    if image.shape[2] == channels:
        return image
    if (image.shape[2], channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (image.shape[2], channels) == (3, 1):
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None]
    raise ValueError(f"an image of {image.shape[2]} channels cannot become one of {channels}")


def image_channels(config: ConfigDict) -> int:
    """Channels that the model wants of an image; the sources give grey or RGB ones."""
    if config.model.in_channels not in (1, 3):
        raise InputError(f"model.in_channels is {config.model.in_channels}: expected 1 or 3: images are grey or RGB")
    return config.model.in_channels
