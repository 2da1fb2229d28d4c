"""The images that a model is applied to: files, folders and lists by their paths, Python's own, or a source."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from greenjax.data.augment import CentreView
from greenjax.data.centre_views import is_single
from greenjax.data.encoded import undecoded
from greenjax.data.open import open_source
from greenjax.data.remote import is_url
from greenjax.data.sources.image_files import find_images
from greenjax.data.sources.list import KINDS, ListSource, read_table
from greenjax.data.sources.names import Names
from greenjax.data.sources.python import PythonSource, checked
from greenjax.data.stream import LOOKED_AT, fault_of
from greenjax.errors import InputError, RunError
from greenjax.runtime.files import expanded


def images_of(config: ConfigDict, paths: Sequence[str | Path]) -> Any:
    """The images that `paths` name, or without paths those of `config.data`, in the order of that source."""
    return named_images(paths) if paths else open_source(config.data, config.data.split)


def python_images(config: ConfigDict, images: Any) -> Any:
    """The images of a path, of a sequence of paths, or of pixels, a PIL image or the bytes of a file, or several.

    `config` is that of the model.
    """
    if isinstance(images, str | Path):
        return named_images([images])
    if isinstance(images, Sequence) and images and all(isinstance(each, str | Path) for each in images):
        return named_images(images)
    return PythonSource(checked([images] if is_single(config, images) else images, workers=0))


def named_images(paths: Sequence[str | Path]) -> ListSource:
    """The files that paths name, in this order: all below a folder, sorted; those of a list; or a file itself.

    Raises InputError where a path does not exist or a folder has no images.
    """
    names: list[str] = []
    for given in paths:
        if is_url(str(given)):
            raise InputError(
                f"images {str(given)!r}: a URL goes into settings, --set data.source=folder --set data.path=URL"
            )
        path = expanded(given)
        if path.is_dir():
            found = find_images(path)
            if not found:
                raise InputError(f"images {str(path)!r}: the folder has none")
            names += [os.path.join(path, name) for name in found]
        elif not path.exists():
            raise InputError(f"images {str(path)!r}: no such file or folder")
        elif path.suffix.lower() in KINDS:
            names += listed_in(path)
        else:
            names.append(str(path))
    if not names:
        raise InputError(f"images {', '.join(map(str, paths))}: the list has no path")
    return ListSource("", Names.of(names))


def listed_in(path: Path) -> list[str]:
    """The paths in a list, those that are relative to its folder joined to it. Raises InputError for URLs."""
    try:
        names = read_table(str(path), path.read_bytes())["path"]
    except OSError as error:
        raise InputError(f"list {str(path)!r} cannot be read: {error.strerror}") from error
    if any(map(is_url, names)):
        raise InputError(f"list {str(path)!r} has URLs: expected --set data.source=list --set data.path={path}")
    return [os.path.join(os.path.dirname(path), name) for name in names]


def check_images(config: ConfigDict, source: Any) -> None:
    """Raises InputError, before a model is loaded, where none of the images is one that the model takes.

    It ends at the first that is. Evenly spaced ones go first: the images of a broken folder are neighbours.
    """
    view, first = CentreView.from_config(config), None
    spaced = dict.fromkeys(np.linspace(0, len(source) - 1, min(len(source), LOOKED_AT)).astype(int).tolist())
    for count, index in enumerate(chain(spaced, (i for i in range(len(source)) if i not in spaced))):
        if first and count == len(spaced):
            found = f"{first.name}: {first.reason}"
            logging.warning("none of %d images, evenly spaced, can be used (%s): looking at all", count, found)
        try:
            view(undecoded(source, index), index)
            return
        except (InputError, RunError):
            raise
        except Exception as error:  # any error of an image: images are the user's
            first = first or fault_of(source, index, error)
    assert first is not None
    of = "the image cannot" if len(source) == 1 else f"none of the {len(source):,} images can"
    raise InputError(f"{of} be used: {first.name}: {first.reason}")
