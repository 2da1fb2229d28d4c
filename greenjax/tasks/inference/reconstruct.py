"""What a pre-trained model makes of images of which it sees a part: original, visible part, reconstruction."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Bool
from ml_collections import ConfigDict

from greenjax.config import flatten, resolve
from greenjax.data.centre_views import centre_views
from greenjax.data.encoded import DecodeError, Encoded
from greenjax.data.loader import image_batches
from greenjax.data.reading import scale_of
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.evaluation.pictures.reconstruct import Colours, sheet
from greenjax.interop.loading import with_image_size
from greenjax.interop.pretrained import load_placed, load_pretrained
from greenjax.models import MaskedImageModel
from greenjax.planning.masking import draw_visible, visible_count
from greenjax.runtime.console import say
from greenjax.runtime.files import expanded
from greenjax.tasks.inference.images import check_images

BATCH = 8  # images of one call


def reconstruct_files(
    model: Any, source: Any, out: Path, visible: Bool[np.ndarray, "uh uw"], *, overwrite: bool = False
) -> None:
    """Writes a PNG for each image of a source into the folder `out`, all under one mask; True = the encoder sees it.

    Raises InputError, before the first image is computed, where a picture is there and not to be overwritten.
    """
    config = small_batches(model.config, len(source))
    check_images(config, source)
    pictures = picture_paths(source, out)
    there = [path for path in pictures if path.exists()]
    if there and not overwrite:
        raise InputError(f"out {str(there[0])!r} is there: expected a new folder, or --overwrite")
    drawn, undecodable = 0, Undecodable()
    batches = image_batches(config, source, undecodable=undecodable)
    for first, batch in zip(range(0, len(source), config.data.batch_size), batches):
        prediction = np.asarray(model(batch.images, visible).prediction)
        for row in np.flatnonzero(batch.valid):
            one = slice(row, row + 1)
            sheet(batch.images[one], visible[None], prediction[one], **drawing(model)).save(pictures[first + row])
            drawn += 1
    say(f"{out}: pictures of {drawn:,} of {len(source):,} images, {visible.sum()} of {visible.size} units visible")


def show(model: Any, images: Any, *, ratio: float | None = None, seed: int = 0) -> PIL.Image.Image:
    """Original, visible part and reconstruction of one image or of several, as a picture that a notebook shows.

    `model` is a masked image model, or what `greenjax.load_pretrained` makes one of. Images as in `model.embed`. All
    are seen under one random mask, drawn by `seed`, that hides the share `ratio` of the units; by default that of the
    pre-training. Raises InputError for a model without a decoder, and for an image that cannot be used.
    """
    model = load_pretrained(model) if isinstance(model, str | Path) else model
    if not isinstance(model, MaskedImageModel):
        raise InputError(f"model is a {type(model).__name__}: expected one with a decoder, of a pre-training run")
    pixels, _ = centre_views(model.config, images)
    mask = drawn_mask(model, ratio, seed)
    prediction = np.asarray(model.for_files()(pixels, mask).prediction)
    return sheet(pixels, np.stack([mask] * len(pixels)), prediction, **drawing(model)).image()


def drawing(model: Any) -> dict[str, Any]:
    """How reconstructions of a model are drawn."""
    data = model.config.data
    colours = Colours(data.mean, data.std, scale_of(data), data.no_data, model.config.log.picture_channels)
    return dict(patch=model.grid.pixels, colours=colours, normalised=model.predicts_normalised)


def pretrained(place: str, step: int | None, size: tuple[int, ...] | None) -> Any:
    """The masked image model of a run, a file or a folder, for images of this size. Raises InputError for others."""
    model, step = load_placed(place, step)
    if model.config.task != "pretrain":
        raise InputError(f"model is {place!r}, of task {model.config.task!r}: expected a pre-training run")
    model.floats_are_raw = True  # the images come from files
    say(f"{place}: {model.config.model.name}" + ("" if step is None else f" of step {step}"))
    if size is None:
        return model
    resized, report = with_image_size(model, size[0] if len(size) == 1 else (size[0], size[-1]))
    resized.floats_are_raw = True
    say(*report.lines())
    return resized


def small_batches(config: ConfigDict, images: int) -> ConfigDict:
    """The configuration with batches of a few images, on one device."""
    batch = {"data.batch_size": min(BATCH, images), "mask.groups": 1, "optim.accumulation": 1}
    return resolve(flatten(config) | batch | {"mesh.data": 1, "mesh.fsdp": 1})


def picture_paths(source: Any, out: Path) -> list[Path]:
    """A file in `out` for each image, by its name without folders and suffix; later ones of one name are numbered."""
    stems = [Path(source.name_of(index)).stem for index in range(len(source))]
    met, taken = Counter[str](), dict[str, None]()
    for stem in stems:
        name = stem
        while name in taken:
            met[stem] += 1
            name = f"{stem}_{met[stem] + 1}"
        taken[name] = None
    return [out / f"{name}.png" for name in taken]


# Masks


def drawn_mask(model: Any, ratio: float | None, seed: int) -> Bool[np.ndarray, "uh uw"]:
    """A random mask as in pre-training, or of another `ratio`. Raises InputError where it hides none or all, and for a
    negative seed."""
    if seed < 0:
        raise InputError(f"seed is {seed}: expected a whole number, at least 0")
    units, drawn = model.grid.units, model.config.mask
    count = visible_count(math.prod(units), drawn.ratio if ratio is None else ratio)
    return draw_visible(np.random.default_rng(seed), units, count, drawn.block)


def listed_mask(units: tuple[int, int], visible: str) -> Bool[np.ndarray, "uh uw"]:
    """The mask that shows the units of a list such as 0,3,17, which counts them row by row."""
    count = units[0] * units[1]
    found = np.zeros(count, bool)
    try:
        numbers = [int(word) for word in visible.split(",")]
    except ValueError:
        numbers = [-1]
    if not all(0 <= number < count for number in numbers):
        raise InputError(
            f"visible is {visible!r}: expected units from 0 to {count - 1} ({units[0]} rows of {units[1]})"
        )
    found[numbers] = True
    return found.reshape(units)


def mask_of_file(path: str, units: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "uh uw"]:
    """The mask in a .npy or an image: True or light = visible, a value a unit or a pixel.

    Of pixels, a unit is visible where at least half of it is. Raises InputError for any other file.
    """
    file = expanded(path)
    try:
        pixels = Encoded(file.read_bytes(), path).decode()[..., 0] if file.suffix != ".npy" else np.load(file)
    except (OSError, EOFError, ValueError, DecodeError) as error:
        raise InputError(f"mask {path!r} cannot be read: {error}") from error
    if getattr(pixels, "dtype", np.dtype(object)).kind not in "biuf":
        raise InputError(f"mask {path!r} holds no numbers: expected an array of them, or of True and False")
    light = pixels if pixels.dtype == bool else pixels > (127 if file.suffix != ".npy" else 0)
    if light.shape == size and light.shape != units:
        (h, w), (uh, uw) = size, units
        return light.reshape(uh, h // uh, uw, w // uw).mean(axis=(1, 3)) >= 0.5
    if light.shape != units:
        expected = f"{units[0]} x {units[1]}, a value a unit, or {size[0]} x {size[1]} pixels"
        raise InputError(f"mask {path!r} is {' x '.join(map(str, light.shape))}: expected {expected}")
    return light
