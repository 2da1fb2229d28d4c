"""The head of the classifier or detector that `config.init` names: its number of classes and their names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from greenjax.backbones.registry import family_of
from greenjax.backbones.rules import Layout
from greenjax.config.inherit import recorded
from greenjax.errors import InputError
from greenjax.interop.files import IN_FOLDER, Contents, read_weights, weights_of
from greenjax.interop.huggingface import folder_classes
from greenjax.runtime.classes import FILE, Classes, from_json, read_classes
from greenjax.runtime.files import expanded, read_metadata

CLASSES = "roi_heads/box_predictor/cls_score"  # of a detector


class Head(NamedTuple):
    """The head of a classifier, or the predictors of a detector."""

    outputs: int | None  # None: there is no head
    classes: Classes  # () where nobody knows them


def initial_head(config: ConfigDict) -> Head:
    """The head of `config.init`; none where it is a classifier's and the task is "detect", or the other way round.

    Raises InputError where its classes.json names more or fewer classes than it has.
    """
    init = expanded(config.init)
    if config.init == "none":
        return Head(None, ())
    if init.is_file() or weights_of(init):
        layouts = family_of(config.model.name).layouts.values()
        outputs = head_size(read_weights(init), layouts, detector=config.task == "detect")
        return Head(outputs, classes_of(init, outputs) if outputs else ())
    there = recorded(config.init)
    if config.task != "eval" and (there.get("task") == "detect") != (config.task == "detect"):
        return Head(None, ())
    outputs = there.get("model.num_classes")
    return Head(outputs, _written_classes(init, outputs) if outputs else ())


def head_size(contents: Contents, layouts: Iterable[Layout], *, detector: bool) -> int | None:
    """The classes of the head in a file, a classifier's or a detector's, whose predictor has the background besides.

    Under the names of one of the layouts; None where there is no such head.
    """
    tables = [layout.detector if detector else layout.head for layout in layouts]
    rules = [rule for table in tables for rule in table if rule.ours in ("head", CLASSES)]
    names = tuple({f".{rule.theirs}.bias" for rule in rules})
    for tensors in contents.containers.values():
        for name, value in tensors.items():
            if f".{name}".endswith(names):
                return len(value) - detector
    return None


def check_head(trained: Mapping[str, Any], config: ConfigDict) -> None:
    """Raises InputError where a head would be taken over that was `trained` with other settings of the model."""
    for part, value in trained.items():
        if config.model[part] != value:
            expected = f"expected {value!r}, that of the weights' head, or a new head"
            flags = "--config.new_head (of from-torch: --new-head)"
            raise InputError(f"model.{part} is {config.model[part]!r}: {expected}, by {flags}")


def classes_file(init: str | Path) -> Path:
    """Where the names of a head's classes may be written: in its workdir or folder, or beside its file."""
    path = expanded(init)
    return (path if path.is_dir() else path.parent) / FILE


def classes_of(path: Path, outputs: int) -> Classes:
    """The names of a head's outputs: in classes.json, in the file's metadata, or in the config.json of transformers."""
    if names := _written_classes(path, outputs):
        return names
    file = weights_of(path) or path
    try:
        if text := read_metadata(file).get("classes") if file.is_file() else None:
            return from_json(text)
    except ValueError as error:
        raise InputError(f"weights {str(path)!r}: the classes in the metadata are no JSON list of names") from error
    names = folder_classes(path) if path.is_dir() or path.name in IN_FOLDER else ()
    return names if len(names) == outputs else ()


def _written_classes(path: Path, outputs: int) -> Classes:
    """The names in classes.json: one an output, or fewer in a run whose data have fewer classes than its head."""
    file = classes_file(path)
    names, of_a_run = read_classes(file.parent), (file.parent / "data.json").is_file()
    if names and (len(names) > outputs or (len(names) < outputs and not of_a_run)):
        raise InputError(f"{str(file)!r} has {len(names)} names: expected {outputs}, one for each output of the head")
    return names
