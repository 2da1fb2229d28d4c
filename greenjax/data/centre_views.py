"""Images that a caller hands over, one or several, as a model sees them in evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from ml_collections import ConfigDict

from greenjax.data.augment import CentreView, reading_of
from greenjax.data.encoded import DecodeError
from greenjax.data.sources.python import PythonSource, checked
from greenjax.data.stream import fault_of
from greenjax.errors import InputError

OBJECTS = np.dtype(object)
NARROW = 16  # pixels: a last axis that is shorter counts channels


def is_single(config: ConfigDict, images: Any) -> bool:
    """Whether `images` is one image: pixels [h, w] or [h, w, c], a PIL image, or the bytes of a file.

    An array [n, h, w] is several grey images where the model takes grey ones and w is at least NARROW. An array or a
    Series of objects is several images.
    """
    if isinstance(images, bytes) or hasattr(images, "getexif"):
        return True
    axes = getattr(images, "ndim", 1)
    if axes not in (2, 3) or getattr(images, "dtype", OBJECTS) == OBJECTS:
        return axes == 0  # a number has no length
    return axes == 2 or reading_of(config).bands is not None or images.shape[2] < NARROW


def centre_views(config: ConfigDict, images: Any) -> tuple[Num[np.ndarray, "n h w c"], bool]:
    """The pixels of the held-out views, and whether `images` is one image.

    An image is pixels [h, w] or [h, w, c], a PIL image, or the bytes of a file; several are a sequence, or an array
    [n, h, w, c], or [n, h, w] of grey ones. Raises InputError for an image that cannot be used.
    """
    if isinstance(images, str | Path):
        raise InputError(f"images is {str(images)!r}: expected a PIL image, pixels, or the bytes of a file, or several")
    single = is_single(config, images)
    source = PythonSource(checked([images] if single else images, workers=0))
    view = CentreView.from_config(config)
    found = []
    for index in range(len(source)):
        try:
            found.append(view(source.encoded(index), index))
        except DecodeError as error:
            which = "the image" if single else f"image {index}"
            raise InputError(f"{which} cannot be used: {fault_of(source, index, error).reason}") from error
    return np.stack(found), single
