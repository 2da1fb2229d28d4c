"""Augmentation in fine-tuning, after crop and flip: RandAugment, then random erasing.

Both draw from (seed, index in the global stream) alone. RandAugment is a table over Pillow: the libraries that have it
need PyTorch, or keep a random state that cannot be set by an index.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Num, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageOps

from greenjax.data.augment import TRIES, RandomView, fitting_box, generator
from greenjax.data.reading import is_there, scale_of

Fill = int | tuple[int, ...]  # the colour of pixels from outside the image: the mean of the images
Operation = Callable[[Image.Image, float, Fill], Image.Image]

MOST = 10.0  # the magnitude at which an operation is as strong as its table entry says
SPREAD = 0.5  # standard deviation of the magnitude
APPLIED = 0.5  # probability of each layer

AREA = (0.02, 1 / 3)  # of an erased box, shares of the image
ASPECT = (0.3, 1 / 0.3)


def labelled_view(config: ConfigDict) -> RandomView:
    """The training view of images with labels: that of pre-training, then RandAugment and erasing if configured."""
    data, after = config.data, []
    if data.randaugment:
        fill = mean_colour(data.mean, scale_of(data))
        after.append(RandAugment(config.seed, data.randaugment, data.randaugment_layers, fill))
    if data.erasing:
        after.append(Erasing(config.seed, data.erasing, data.mean, data.std, scale_of(data), data.no_data))
    return replace(RandomView.from_config(config), after=tuple(after))


def mean_colour(mean: tuple[float, ...], scale: float) -> Fill:
    """The mean of the images, pixels / `scale`, as a colour of Pillow's: a number for grey images."""
    colour = tuple(int(np.clip(round(scale * value), 0, 255)) for value in mean)
    return colour[0] if len(colour) == 1 else colour


# RandAugment


@dataclass(frozen=True)
class RandAugment:
    """`layers` operations in a row, drawn with replacement, each applied half of the time at a random strength.

    Source: RandAugment (arXiv 1909.13719); probability, spread and the ranges of OPERATIONS, all growing with the
    magnitude, are those of timm's "rand-m9-mstd0.5-inc1", with which Swin and the paper's models are fine-tuned.
    """

    seed: int
    magnitude: float  # 0 to MOST
    layers: int
    fill: Fill

    def __call__(self, image: UInt8[np.ndarray, "h w c"], index: int) -> UInt8[np.ndarray, "h w c"]:
        rng = generator(self.seed, index, part=1)
        uniforms, normals = rng.random((self.layers, 3)), rng.standard_normal(self.layers)
        operations, picture = tuple(OPERATIONS.values()), None
        for (which, applied, sign), normal in zip(uniforms, normals):
            if applied < APPLIED:
                picture = to_pillow(image) if picture is None else picture
                level = np.clip(self.magnitude + SPREAD * normal, 0, MOST) / MOST
                operation = operations[int(which * len(operations))]
                picture = operation(picture, float(level if sign < 0.5 else -level), self.fill)
        return image if picture is None else np.array(picture).reshape(image.shape)


def to_pillow(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def enhance(kind: type) -> Operation:
    """An operation that changes a property of the image from a tenth of it (level -1) to 1.9 times of it (level 1)."""
    return lambda image, level, fill: kind(image).enhance(1 + 0.9 * level)


def warp(image: Image.Image, fill: Fill, b: float = 0.0, c: float = 0.0, d: float = 0.0, f: float = 0.0) -> Image.Image:
    """The image whose pixel (x, y) is that at (x + b y + c, d x + y + f), interpolated bicubically."""
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return image.transform(image.size, affine, (1.0, b, c, d, 1.0, f), bicubic, fillcolor=fill)


def add_to_dark(image: Image.Image, added: int) -> Image.Image:
    """Makes the darker half of the values brighter."""
    brighter = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(brighter * len(image.getbands()))


# By name: (image, level from -1 to 1, fill) -> image. Operations without a direction take the level's size alone.
# On grey images `colour` changes nothing; the others treat the one channel as they treat each of three.
OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, level, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, level, fill: ImageOps.equalize(image),
    "invert": lambda image, level, fill: ImageOps.invert(image),
    "posterize": lambda image, level, fill: ImageOps.posterize(image, max(1, 4 - int(4 * abs(level)))),  # bits left
    "solarize": lambda image, level, fill: ImageOps.solarize(image, 256 - int(256 * abs(level))),  # inverted from there
    "solarize_add": lambda image, level, fill: add_to_dark(image, int(110 * abs(level))),
    "colour": enhance(ImageEnhance.Color),
    "contrast": enhance(ImageEnhance.Contrast),
    "brightness": enhance(ImageEnhance.Brightness),
    "sharpness": enhance(ImageEnhance.Sharpness),
    "rotate": lambda image, level, fill: image.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=fill),  # degrees
    "shear_x": lambda image, level, fill: warp(image, fill, b=0.3 * level),
    "shear_y": lambda image, level, fill: warp(image, fill, d=0.3 * level),
    "translate_x": lambda image, level, fill: warp(image, fill, c=0.45 * level * image.width),
    "translate_y": lambda image, level, fill: warp(image, fill, f=0.45 * level * image.height),
}


# Random erasing


@dataclass(frozen=True)
class Erasing:
    """Fills a random box with noise, at some probability: the noise is N(0, 1) once colours are normalised.

    Source: Random Erasing (arXiv 1708.04896); areas and aspect ratios are timm's, the noise its mode "pixel".
    """

    seed: int
    probability: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0  # pixels are divided by it
    no_data: str = "none"  # pixels without data stay without

    def __call__(self, image: Num[np.ndarray, "h w c"], index: int) -> Num[np.ndarray, "h w c"]:
        rng = generator(self.seed, index, part=2)
        uniforms = rng.random(2 * TRIES + 3).tolist()
        box = fitting_box(image.shape[:2], AREA, ASPECT, uniforms[:-1])
        if uniforms[-1] >= self.probability or box is None:
            return image
        top, left, height, width = box
        noise = rng.standard_normal((height, width, image.shape[2]), np.float32)
        mean, std = (np.array(colour, np.float32) for colour in (self.mean, self.std))
        values = np.float32(self.scale) * (mean + std * noise)
        if image.dtype.kind in "iu":
            limits = np.iinfo(image.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
            if self.no_data not in ("none", "nan"):  # noise that happens to have this value is none
                gone = float(self.no_data)
                values[values == gone] = gone + 1 if gone < limits.max else gone - 1
        image = image.copy()
        box = image[top : top + height, left : left + width]
        there = True if self.no_data == "none" else is_there(box, self.no_data)
        np.copyto(box, values.astype(image.dtype), where=there)
        return image
