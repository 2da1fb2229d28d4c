"""Models from files, folders and the workdirs of runs."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from greenjax.backbones.attention import runnable
from greenjax.backbones.registry import family_of
from greenjax.backbones.rules import Layout
from greenjax.config import flatten, read_recorded, resolve
from greenjax.config.inherit import differences, kept
from greenjax.errors import InputError
from greenjax.interop.entries import of_classes
from greenjax.interop.files import PICKLES, SAFETENSORS, Contents, read_weights, weights_of
from greenjax.interop.heads import check_head, classes_of, head_size
from greenjax.interop.layouts import MERGE_ORDERS, RESIZE_METHODS, find_layout
from greenjax.interop.selection import fitting_layouts, look_alike
from greenjax.interop.tensors import BY_DEFAULT, Reading, from_tensors
from greenjax.interop.weights import Report, Weights, adapt, flat_weights, folded, parameter_shapes, put_weights
from greenjax.models import Backbone, build
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.classes import read_classes
from greenjax.runtime.files import expanded

GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as OpenCV's RGB2GRAY


def load_torch(
    path: str | Path,
    config: ConfigDict,
    layout: str,
    *,
    merge_order: str = MERGE_ORDERS[0],
    resize: str = RESIZE_METHODS[0],
    new_head: bool = False,
    seed: int = 0,
    key: str | None = None,
    prefix: str | None = None,
) -> Any:
    """The model that `config` describes, with the weights of a PyTorch file or a folder of transformers.

    The file has to hold the whole encoder. Other parts that it lacks stay as `seed` initialised them, and parts that
    the model lacks are dropped. Position bias tables of another window are resized ("geometric", "bicubic", or "none"
    to refuse). A log line names each. `merge_order` "raster" is for GreenMIM files pre-trained in raster order. With
    `new_head` a classifier keeps its new head, and a detector its new predictors. `key` is that of the dictionary in
    the file that holds the weights, `prefix` stands before their names; both are found where they are not given. Raises
    InputError, and loads nothing, where anything does not fit.
    """
    how = Reading(merge_order, resize, new_head, key, prefix)
    model, report = read_torch(path, resolve(config), layout, how, seed)
    for line in report.lines():
        logging.warning("%s: %s", path, line)
    return model


def read_torch(
    path: str | Path,
    config: ConfigDict,
    layout: str,
    how: Reading = BY_DEFAULT,
    seed: int = 0,
    contents: Contents | None = None,
) -> tuple[Any, Report]:
    """As `load_torch`, of a resolved config, with a report in place of log lines.

    A caller that has already read the file gives its `contents`.
    """
    if how.resize not in RESIZE_METHODS:
        raise InputError(f"resize is {how.resize!r}: expected {' or '.join(RESIZE_METHODS)}")
    found = find_layout(layout, config, how.merge_order)
    contents = contents or read_weights(path)
    _check_metadata(contents.metadata, config, layout)
    if config.task not in ("pretrain", "knn") and not config.model.num_classes and not how.new_head:
        classes = head_size(contents, [found], detector=config.task == "detect")
        config = resolve(flatten(config) | {"model.num_classes": classes})
    config, notes = _with_epsilon(config, found, contents.metadata)
    blank = blank_model(config)
    weights, report = from_tensors(contents, blank, layout, how)
    report.notes += notes
    model = filled(blank, adapt(weights, blank, report, how.resize), seed)
    if any(map(of_classes, weights)):
        model.classes = classes_of(expanded(path), config.model.num_classes)
    return model, report


def blank_model(config: ConfigDict) -> Any:
    """The model of a resolved config, with shapes in place of its parameters."""
    return nnx.eval_shape(lambda: build(config))


def filled(blank: Backbone, weights: Weights, seed: int) -> Any:
    """A model with these weights in place of its shapes; `seed` initialises arrays that they lack."""
    model, lacking = blank, parameter_shapes(blank).keys() - weights.keys()
    if lacking:
        model = build(blank.config, seed)
        weights = flat_weights(model) | weights
    put_weights(model, weights)
    return model


def _check_metadata(metadata: dict[str, str], config: ConfigDict, layout: str) -> None:
    """Raises InputError where a file of greenjax says that it has another layout or another model."""
    if metadata.get("layout", layout) != layout:
        raise InputError(f"layout is {layout!r}: the file says {metadata['layout']!r}")
    if found := differences(metadata, config):
        raise InputError(f"the file is that of another architecture, {metadata['architecture']}: {'; '.join(found)}")


def _with_epsilon(config: ConfigDict, layout: Layout, metadata: dict[str, str]) -> tuple[ConfigDict, list[str]]:
    """The config with the epsilon that other programs' files of the layout were trained with, and a note."""
    epsilon = config.model.norm_epsilon
    if not layout.sets_epsilon or metadata or epsilon == layout.epsilon:
        return config, []
    note = f"model.norm_epsilon is {layout.epsilon:g}, as in the file's pre-training, not {epsilon:g}"
    return resolve(flatten(config) | {"model.norm_epsilon": layout.epsilon}), [note]


def load(workdir: str | Path, step: int | None = None) -> Any:
    """The model of a run at its latest checkpoint or `step`: the moving average of its weights where it has one."""
    return load_run(workdir, step)[0]


def load_run(workdir: str | Path, step: int | None = None) -> tuple[Any, int]:
    """As `load`, and the step. Where the run's attention kernel cannot run, XLA computes with the same weights; sparse
    convolutions are native, as training alone needs the package of another backend."""
    weights, config, step = read_run(workdir, step)
    here = {"model.attention": runnable(config.model.attention), "model.sparse_conv": "native"}
    config = resolve(flatten(config) | here)
    model = filled(blank_model(config), weights, config.seed)
    if any(map(of_classes, weights)):
        model.classes = read_classes(expanded(workdir))
    return model, step


def read_run(workdir: str | Path, step: int | None = None) -> tuple[Weights, ConfigDict, int]:
    """The weights of a run's checkpoint, the run's configuration, and the step."""
    path = expanded(workdir) / "config.json"
    if not path.is_file():
        raise InputError(f"workdir {str(workdir)!r}: expected the folder of a run, with config.json and checkpoints")
    try:
        config = resolve(read_recorded(path, "remove it and start the run's own command again, which writes it anew"))
    except InputError as error:
        raise InputError(f"{workdir} cannot be read: {error}") from error
    weights, step = Checkpointer(path.parent).weights(step)
    return folded(weights), config, step


def initial_model(config: ConfigDict, step: int | None = None) -> tuple[Any, Report] | None:
    """The model that `config.init` names weights for: a run, or a file or folder of weights; None for "none".

    `step` is that of a run's checkpoint, by default the latest.
    """
    init = expanded(config.init)
    if config.init == "none":
        return None
    named = init.suffix in SAFETENSORS + PICKLES and not init.is_dir()  # a workdir may have any name
    if init.is_file() or named or weights_of(init):
        if step is not None:
            raise InputError(f"step is {step}: expected none, as {config.init!r} is no run, which has checkpoints")
        return _from_foreign(init, config)
    if not (init / "config.json").is_file():
        raise InputError(
            f"init, as a workdir {config.init!r}: expected the folder of a run, with config.json and checkpoints, or"
            " weights: a file, or a folder of transformers"
        )
    weights, of, _ = read_run(init, step)
    if of.task == "detect" != config.task:
        expected = f"the run of a pre-training or a classifier for task {config.task!r}"
        raise InputError(f"init is {config.init!r}, a detector, whose encoder has no last norm: expected {expected}")
    if family_of(of.model.name) is not family_of(config.model.name):
        raise InputError(f"init is {config.init!r}, a {of.model.name}: expected a {config.model.name}")
    report, blank = Report(), blank_model(config)
    fitted = adapt(weights, blank, report, new_head=config.new_head)
    if "head/kernel" in fitted:
        check_head({part: of.model[part] for part in family_of(of.model.name).read_by_head}, config)
    return filled(blank, fitted, config.seed), report


def _from_foreign(init: Path, config: ConfigDict) -> tuple[Any, Report]:
    """The model with the weights of a file or a folder, in the layout that its metadata names or its names fit."""
    contents, how = read_weights(init), Reading(new_head=config.new_head)
    if layout := contents.metadata.get("layout"):
        return read_torch(init, config, layout, how, config.seed, contents)
    layouts = family_of(config.model.name).layouts
    fitting = fitting_layouts(contents, blank_model(config))
    if any(layouts[name].sets_epsilon for name in fitting):
        command = shlex.join(["from-torch", "--layout", fitting[0], "--input", str(init)])
        raise InputError(
            f"init is {str(init)!r}: its names fit layout {' or '.join(fitting)}, and do not tell the order of patch"
            f" merging or the epsilon of norms. Say which it is: python -m greenjax.convert {command}"
            " --config CONFIG.py --workdir DIR, and --config.init=DIR after that"
        )
    alike = fitting or [name for name in look_alike(contents) if name in layouts]
    if not alike:
        raise InputError(
            f"init is {str(init)!r}: its names are those of no layout of a {config.model.name}, {', '.join(layouts)}"
        )
    model, report = read_torch(init, config, alike[0], how, config.seed, contents)
    report.notes.insert(0, f"layout {alike[0]}, by the names in the file")
    return model, report


def with_image_size(
    model: Backbone, size: int | tuple[int, ...], resize: str = RESIZE_METHODS[0]
) -> tuple[Backbone, Report]:
    """The same model for other images: position bias tables are resized where a window has to change, and settings that
    the family keeps from its weights stay. A detector's shorter sides above that size and quarter turns, which training
    alone uses, are left out; masks have to fit it."""
    there, shorter = flatten(model.config), size if isinstance(size, int) else min(size)
    sides = tuple(side for side in there["detect.shorter_sides"] if side <= shorter)
    here = there | {"image_size": size, "detect.shorter_sides": sides, "data.quarter_turns": False}
    changed = kept(there, here)
    report = Report(notes=[f"{key} is {value}, as the weights were trained" for key, value in changed.items()])
    blank = blank_model(resolve(here | changed))
    resized = filled(blank, adapt(flat_weights(model), blank, report, resize), model.config.seed)
    resized.classes = model.classes
    return resized, report


def with_rgb(model: Backbone) -> Backbone:
    """A classifier of grey images as one that takes RGB, and sees the grey in it.

    The first convolution is linear, and so is the grey of a pixel: its weights are spread over the three colours. It is
    the array whose shape follows from the channels of images; they are its inputs, before its last axis.
    """
    config = model.config
    if config.task == "pretrain" or config.model.in_channels != 1:
        found = "a masked image model" if config.task == "pretrain" else f"one of {config.model.in_channels} channels"
        raise InputError(f"rgb is for a classifier of grey images: the model is {found}")
    colours = {"model.in_channels": 3, "data.mean": tuple(config.data.mean) * 3, "data.std": tuple(config.data.std) * 3}
    weights, blank = flat_weights(model), blank_model(resolve(flatten(config) | colours))
    for name, shape in parameter_shapes(blank).items():
        if shape != weights[name].shape:
            grey = weights[name].reshape(-1, 1, shape[-1])
            weights[name] = (np.array(GREY, np.float32)[None, :, None] * grey).reshape(shape)
    coloured = filled(blank, weights, config.seed)
    coloured.classes = model.classes
    return coloured
