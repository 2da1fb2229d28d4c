"""A digest of the images of a source: two sources with the same images in the same order have the same one."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import Any

import numpy as np


def listing(source: Any) -> str:
    """The digest of a source: names in their order, labels, boundaries. No image is read.

    It does not depend on the folder that holds the data set. It does not change when a file is replaced under its name.
    """
    digest = blake2b(digest_size=8)
    for part in parts_of(source):
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def parts_of(value: Any) -> Iterator[bytes]:
    """What identifies a value: the `parts` of a `Source`, and the fields of slices and sets with labels around it.

    Raises TypeError for a value whose text may differ in the next process.
    """
    if isinstance(value, np.ndarray):
        yield repr((value.dtype.str, value.shape)).encode()
        yield value.tobytes()
    elif hasattr(value, "parts"):
        yield from value.parts()
    elif is_dataclass(value):  # a slice, or images with labels
        yield type(value).__name__.encode()
        for field in fields(value):
            yield from parts_of(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from parts_of(item)
    elif isinstance(value, str | bytes | int | float | range | type(None)):
        yield repr(value).encode()
    else:
        raise TypeError(f"a source has a {type(value).__name__}, of which listing() knows no text")
