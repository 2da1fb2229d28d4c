"""Images that a caller hands over, one or several, as a model sees them in evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from ml_collections import ConfigDict

from greenjax.data.augment import CentreView
from greenjax.data.encoded import DecodeError
from greenjax.data.sources.python import PythonSource, checked
from greenjax.data.stream import fault_of
from greenjax.errors import InputError


def is_single(images: Any) -> bool:
    """Whether `images` is one image: pixels [h, w] or [h, w, c], a PIL image, or the bytes of a file."""
    return isinstance(images, bytes) or hasattr(images, "getexif") or getattr(images, "ndim", 4) < 4


def centre_views(config: ConfigDict, images: Any) -> tuple[Num[np.ndarray, "n h w c"], bool]:
    """The pixels of the held-out views, and whether `images` is one image.

    An image is pixels [h, w] or [h, w, c], a PIL image, or the bytes of a file; several are a sequence, or an array
    [n, h, w, c]. Raises InputError for an image that cannot be used.
    """
    if isinstance(images, str | Path):
        raise InputError(f"images is {str(images)!r}: expected a PIL image, pixels, or the bytes of a file, or several")
    single = is_single(images)
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
