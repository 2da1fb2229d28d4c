"""A short name of what a source has: two sources with the same images in the same order have the same one."""

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from greenjax.data.records import RecordsSource
from greenjax.data.sources import FolderSource, TfdsSource


def listing(source: Any) -> str:
    """The digest of a source: names in their order, labels, boundaries. No file of an image is read.

    It does not change with the folder that holds the data set. Files that were replaced under their names are not seen.
    """
    digest = blake2b(digest_size=8)
    for part in _parts(source):
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield repr((value.dtype.str, value.shape)).encode()
        yield value.tobytes()
    elif isinstance(value, FolderSource):
        yield os.fsencode("\0".join(value.names))
    elif isinstance(value, RecordsSource):
        yield repr((value.encoding, value.counts, [os.path.basename(path) for path in value.shards])).encode()
    elif isinstance(value, TfdsSource):
        yield repr((value.name, len(value))).encode()
    elif is_dataclass(value):  # a part of another source, or one with labels
        yield type(value).__name__.encode()
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, str | bytes | int | float | range | type(None)):
        yield repr(value).encode()
    else:  # its text might be another in the next process
        raise TypeError(f"a source has a {type(value).__name__}: listing() does not know what of it counts")
