"""Images of a Python object that a caller hands over: `greenjax.pretrain(config, workdir, source=images)`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Encoded, Image, Opened
from greenjax.data.labels import Listed
from greenjax.data.reading import DTYPES
from greenjax.data.sources.base import Source
from greenjax.errors import InputError, in_a_line, listed

GIVEN: ContextVar[Mapping[str, Any]] = ContextVar("images from Python, by the name of their split")


@dataclass(frozen=True, eq=False)
class PythonSource(Source):
    """Anything with a length and items. An item is pixels [h, w] or [h, w, c], a PIL image, or the bytes of an image
    file.

    Labels are attributes of the object: `labels`, a whole number an image, and `classes`, the names of the classes.
    """

    place = ()

    images: Any

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        pass

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "PythonSource":
        images = GIVEN.get({})
        if split not in images:
            call = "greenjax.pretrain(config, workdir, source=images), or finetune"
            raise InputError(f"data.source is 'python', without images of split {split!r}: expected them from {call}")
        return cls(checked(images[split], data.workers))

    def __len__(self) -> int:
        return len(self.images)

    def encoded(self, index: int) -> Image:
        item = self.images[index]
        if isinstance(item, bytes):
            return Encoded(item, self.name_of(index))
        if hasattr(item, "getexif"):  # of Pillow
            return Opened(b"", self.name_of(index), item)
        if not hasattr(item, "shape") and not hasattr(item, "__array__"):
            expected = "an image alone: pixels, a PIL image, or the bytes of a file"
            where = "labels are attributes of the sequence"
            raise DecodeError(f"{self.name_of(index)} is a {type(item).__name__}: expected {expected}; {where}")
        try:
            pixels = np.asarray(item)
        except (TypeError, ValueError, RuntimeError) as error:  # such as PyTorch's for a tensor on a GPU
            raise DecodeError(f"{self.name_of(index)} cannot become an array: {in_a_line(error)}") from error
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.dtype.name not in DTYPES:
            found, kinds = f"{pixels.dtype} {list(pixels.shape)}", " or ".join(DTYPES)
            raise DecodeError(f"{self.name_of(index)} is {found}: expected {kinds} [h, w] or [h, w, c], or a file")
        return pixels

    def name_of(self, index: int) -> str:
        return f"source[{index}]"

    def labelled(self, training: bool) -> Listed:
        try:
            labels, classes = np.asarray(self.images.labels, np.int32), tuple(map(str, self.images.classes))
        except (AttributeError, TypeError, ValueError) as error:
            expected = "`labels`, a whole number an image, and `classes`, their names"
            raise InputError(f"source, a {type(self.images).__name__}, has no labels: expected {expected}") from error
        if labels.shape != (len(self),):
            raise InputError(f"source.labels has shape {labels.shape}: expected ({len(self)},), one an image")
        return Listed(self, labels, classes)

    def parts(self) -> Iterator[bytes]:
        yield repr((type(self.images).__qualname__, len(self))).encode()

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        return len(np.intersect1d(rows, others)) if self.images is other.images else 0


@contextmanager
def given(**images: Any) -> Iterator[None]:
    """Inside, images from Python are the splits of data.source "python", by their names."""
    token = GIVEN.set(images)
    try:
        yield
    finally:
        GIVEN.reset(token)


def checked(images: Any, workers: int) -> Any:
    """The images. Raises InputError for an object that is no sequence, or cannot be sent to `workers` processes."""
    kind = type(images).__name__
    for name in ("__len__", "__getitem__"):
        if not hasattr(images, name):
            raise InputError(f"source is a {kind} without {name}: expected a sequence of images")
    if not len(images):
        raise InputError(f"source, a {kind}, is empty: expected at least 1 image")
    if isinstance(images, Mapping):
        raise InputError(f"source is a {kind} of {listed(map(str, images))}: expected a sequence of images")
    try:
        if workers:
            with open(os.devnull, "wb") as nowhere:  # a copy in memory could be too large
                cloudpickle.dump(images, nowhere)
    except Exception as error:
        what = f"source, a {kind}, cannot be sent to worker processes: {error}"
        raise InputError(f"{what}: expected one that can be pickled, or data.workers = 0") from error
    try:
        PythonSource(images).encoded(0)
    except DecodeError as error:
        raise InputError(str(error)) from error
    return images
