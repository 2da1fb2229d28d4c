"""Folders that transformers' from_pretrained opens: the weights, their config, and the preprocessor of images."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from greenjax.config import KEYS
from greenjax.config.settings import READING
from greenjax.config.transformers import PROCESSOR
from greenjax.interop.card import CARD
from greenjax.interop.files import write_tensors
from greenjax.runtime.classes import Classes
from greenjax.runtime.files import replace_text

UNNAMED = "LABEL_"  # transformers' names of classes without a name begin so


class Folder(NamedTuple):
    """The files of a folder beside the weights."""

    described: dict[str, Any]  # config.json
    processor: dict[str, Any] | str  # preprocessor_config.json, or why there is none
    card: str  # README.md


def write_folder(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], beside: Folder
) -> list[str]:
    """Writes the weights and the files beside them; a new folder whole or not at all. A README.md that is there stays.

    Returns a line for each file that is not written.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        return _write_files(path, tensors, metadata, beside)
    except BaseException:
        if made:
            shutil.rmtree(made[-1], ignore_errors=True)
        raise


def _write_files(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], beside: Folder
) -> list[str]:
    notes = []
    write_tensors(path / "model.safetensors", tensors, metadata)
    replace_text(path / "config.json", json.dumps(beside.described, indent=2) + "\n")
    if isinstance(beside.processor, str):
        (path / PROCESSOR).unlink(missing_ok=True)  # of an earlier export
        notes.append(f"no {PROCESSOR}: {beside.processor}")
    else:
        replace_text(path / PROCESSOR, json.dumps(beside.processor, indent=2) + "\n")
    if (path / CARD).exists():
        notes.append(f"{CARD} stays as it is: without it, the same command writes a new one")
    else:
        replace_text(path / CARD, beside.card)
    return notes


def labels(classes: Classes, count: int) -> dict[str, Any]:
    """The entries of config.json that name the outputs of a head."""
    names = [*classes, *(f"{UNNAMED}{index}" for index in range(len(classes), count))]
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def folder_classes(path: Path) -> Classes:
    """The names that a folder of transformers, or the one that a file lies in, gives the outputs of its head.

    () where there is no such folder, or where transformers made the names up.
    """
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8-sig"))
        names = found["id2label"]
        classes = tuple(str(names[str(index)]) for index in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return () if any(name.startswith(UNNAMED) for name in classes) else classes


def image_processor(config: ConfigDict) -> dict[str, Any] | str:
    """The preprocessor_config.json that does what evaluation does with an image (CentreView), or why there is none.

    The shorter side becomes image_size / data.eval_crop, and the centre is cut out. BitImageProcessor is the plainest
    processor of transformers that does so, with and without torchvision, in versions 4 and 5.
    """
    height, width = config.image_size
    if config.model.in_channels != 3:
        grey = config.model.in_channels == 1
        remedy = ": --rgb exports one that takes RGB" if grey and config.task != "pretrain" else ""
        images = "grey images" if grey else f"images of {config.model.in_channels} channels"
        return f"transformers reads files as RGB, and the model takes {images}{remedy}"
    data, plain = config.data, {key.removeprefix("data."): KEYS[key].default for key in READING}
    usual = {"channels": [(), (0, 1, 2)]}  # the latter: what RGB is anyway
    if other := [key for key, value in plain.items() if data[key] not in usual.get(key, [value])]:
        found = ", ".join(f"data.{key} {data[key]!r}" for key in other)
        return f"transformers reads files as 8-bit RGB, and the model with {found}"
    if height != width:
        return f"transformers cannot cover {height} x {width} pixels: docs/interop.md has a line that does"
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(height / config.data.eval_crop)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / (config.data.scale or 255),
        "do_normalize": True,
        "image_mean": list(config.data.mean),
        "image_std": list(config.data.std),
    }
