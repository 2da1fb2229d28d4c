"""Weights in and out of files, workdirs and models: what the commands and the Python interface call."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.config import flatten, read_recorded, resolve
from greenjax.config.inherit import recorded
from greenjax.data.classes import FILE as CLASSES
from greenjax.data.classes import Classes, from_json, read_classes
from greenjax.errors import InputError
from greenjax.interop.files import (
    IN_FOLDER,
    PICKLES,
    SAFETENSORS,
    Contents,
    check_output,
    made_folder,
    read_metadata,
    read_weights,
    to_array,
    weights_of,
    write_tensors,
)
from greenjax.interop.huggingface import folder_classes, folder_config, image_processor
from greenjax.interop.layouts import check_geometry, describe, family, find_layout
from greenjax.interop.resize import METHODS
from greenjax.interop.tables import LAYOUTS, Layout
from greenjax.interop.weights import (
    Report,
    Weights,
    fit,
    fitting_layouts,
    flat_weights,
    folded,
    from_tensors,
    look_alike,
    put_weights,
    to_tensors,
)
from greenjax.models import Backbone, build
from greenjax.ops.group_attention import check_attention
from greenjax.runtime.checkpoint import Checkpointer, flatten_tree
from greenjax.runtime.files import expanded, replace_text

GREENMIM_EPSILON = 1e-6  # of the norms in GreenMIM's pre-training
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as OpenCV's RGB2GRAY
PATCH_EMBED = "encoder/patch_embed/proj/kernel"


def load_torch(
    path: str | Path,
    config: ConfigDict,
    layout: str,
    *,
    merge_order: str = "swin",
    resize: str = "geometric",
    new_head: bool = False,
    seed: int = 0,
    key: str | None = None,
    prefix: str | None = None,
) -> Any:
    """The model that `config` describes, with the weights of a PyTorch file or a folder of transformers.

    The encoder has to be there whole. What else the file lacks stays as `seed` initialised it, what the model lacks
    is dropped, and position bias tables of another window are resized ("geometric", "bicubic", or "none" to refuse);
    a log line names each. `merge_order` "raster" is for GreenMIM files pre-trained in raster order; with `new_head`
    a classifier keeps its new head. `key` names the dictionary in the file that holds the weights, `prefix` what stands
    before their names; both are found where they are not given. Raises InputError, and loads nothing, if anything does
    not fit.
    """
    model, report = read_torch(
        path,
        resolve(config),
        layout,
        merge_order=merge_order,
        resize=resize,
        new_head=new_head,
        seed=seed,
        key=key,
        prefix=prefix,
    )
    for line in report.lines():
        logging.warning("%s: %s", path, line)
    return model


def read_torch(
    path: str | Path,
    config: ConfigDict,
    layout: str,
    *,
    merge_order: str = "swin",
    resize: str = "geometric",
    new_head: bool = False,
    seed: int = 0,
    key: str | None = None,
    prefix: str | None = None,
) -> tuple[Any, Report]:
    """As `load_torch`, of a resolved config, with a report in place of log lines."""
    if resize not in METHODS:
        raise InputError(f"resize is {resize!r}: expected {' or '.join(METHODS)}")
    found = find_layout(layout, config, merge_order)
    contents = read_weights(path)
    _check_metadata(contents.metadata, config, layout)
    if config.task in ("finetune", "linear", "eval") and not config.model.num_classes and not new_head:
        config = resolve(flatten(config) | {"model.num_classes": _head_size(contents, (found,))})
    config, notes = _greenmim_norms(config, layout, contents.metadata)
    shapes = model_shapes(config)
    weights, report = from_tensors(
        contents, shapes, config, layout, merge_order, key=key, prefix=prefix, new_head=new_head
    )
    report.notes += notes
    model = _filled(config, seed, fit(weights, shapes, report, resize))
    if "head/kernel" in weights:
        model.classes = _classes_in(expanded(path), len(weights["head/bias"]))
    return model, report


def _head_size(contents: Contents, layouts: Iterable[Layout]) -> int | None:
    """How many classes the head in a file has, under the names of one of the layouts; None where it has no head."""
    names = tuple({f".{rule.theirs}.bias" for layout in layouts for rule in layout.head})
    for tensors in contents.containers.values():
        for name, value in tensors.items():
            if f".{name}".endswith(names):
                return len(value)
    return None


def save_torch(
    model: Backbone,
    path: str | Path,
    layout: str,
    *,
    merge_order: str = "swin",
    encoder_only: bool = False,
    prefix: str = "",
    step: int | None = None,
) -> list[str]:
    """Writes a model for PyTorch: *.safetensors, *.pth, or for "hf" a folder that from_pretrained opens.

    `prefix` goes before every name. `step` is told in the metadata. Returns, in words, what was left out and what will
    differ there. Raises InputError where the library cannot hold the model, and writes nothing.
    """
    config = model.config
    path = check_output(path, folder=layout == "hf")
    found = find_layout(layout, config, merge_order)
    notes = check_geometry(layout, found, config)
    weights = folded(flat_weights(model))
    bad = [name for name, value in weights.items() if not np.isfinite(value).all()]
    if bad:
        raise InputError(
            f"{len(bad)} of {len(weights)} arrays of the model are not finite, such as {bad[0]}: nothing written"
        )
    tensors, left_out = to_tensors(weights, config, layout, merge_order, encoder_only=encoder_only)
    tensors = {prefix + name: value for name, value in tensors.items()}
    metadata = describe(config) | {"layout": layout, "greenjax_version": __version__}
    metadata |= {} if step is None else {"step": str(step)}
    parts = {name.partition("/")[0] for name in weights} - set(left_out)
    classes = model.classes if "head" in parts else ()
    metadata |= {"classes": json.dumps(classes)} if classes else {}
    if path.suffix:
        write_tensors(path, tensors, metadata)
    else:
        described = {"config.json": folder_config(config, parts, classes)}
        processor, path_of_it = image_processor(config), path / "preprocessor_config.json"
        if isinstance(processor, str):
            notes.append(f"no {path_of_it.name}: {processor}")
        else:
            described[path_of_it.name] = processor
        with made_folder(path):
            write_tensors(path / "model.safetensors", tensors, metadata)
            path_of_it.unlink(missing_ok=True)  # one of an earlier export
            for name, values in described.items():
                replace_text(path / name, json.dumps(values, indent=2) + "\n")
    return ([f"left out: {', '.join(left_out)}"] if left_out else []) + notes


def extract(path: str | Path, output: str | Path, *, trust: bool = False) -> list[str]:
    """Writes every tensor of a file as safetensors or a plain state_dict, named KEY.NAME by its dictionary in the file.

    `trust` lets the file run code. Returns, in words, what cannot be written. Raises InputError, and writes nothing,
    for what cannot be read, and where the output is there.
    """
    output = check_output(output)
    if output.exists():
        raise InputError(f"output {str(output)!r} is there: expected a new file")
    tensors: dict[str, np.ndarray] = {}
    lines = []
    for key, found in read_weights(path, trust=trust).containers.items():
        for name, value in found.items():
            whole = f"{key}.{name}" if key else name
            try:
                array = to_array(whole, value)
            except InputError as error:
                lines.append(f"left out: {error}")
                continue
            if array.dtype.kind in "fiub":
                tensors[whole] = array
            else:
                lines.append(f"left out: {whole} is {array.dtype}")
    if not tensors:
        raise InputError(f"weights {str(path)!r}: nothing in it can be written: {'; '.join(lines[:3])}")
    write_tensors(output, tensors, {})
    return [f"{len(tensors)} tensors", *lines]


def load(workdir: str | Path, step: int | None = None) -> Any:
    """The model of a run, from its latest checkpoint or that of `step`: the moving average of its weights, if any."""
    return load_run(workdir, step)[0]


def load_run(workdir: str | Path, step: int | None = None) -> tuple[Any, int]:
    """As `load`, and the step. A run by a kernel that cannot run here is computed by XLA: the weights are the same."""
    weights, config, step = read_run(workdir, step)
    try:
        check_attention(config.model.attention)
    except InputError:
        config = resolve(flatten(config) | {"model.attention": "xla"})
    model = _filled(config, config.seed, weights)
    if "head/kernel" in weights:
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


def initial_model(config: ConfigDict) -> tuple[Any, Report] | None:
    """The model that `config.init` names weights for: a run, or a file or folder of weights; None for "none"."""
    init = expanded(config.init)
    if config.init == "none":
        return None
    named = init.suffix in SAFETENSORS + PICKLES and not init.is_dir()  # a workdir may have any name
    if init.is_file() or named or weights_of(init):
        return _from_foreign(init, config)
    if not (init / "config.json").is_file():
        raise InputError(
            f"init, as a workdir {config.init!r}: expected the folder of a run, with config.json and checkpoints, or"
            " weights: a file, or a folder of transformers"
        )
    weights, of, _ = read_run(init)
    if family(of) != family(config):
        raise InputError(f"init is {config.init!r}, a {of.model.name}: expected a {config.model.name}")
    report = Report()
    fitted = fit(weights, model_shapes(config), report, new_head=config.new_head)
    return _filled(config, config.seed, fitted), report


def _from_foreign(init: Path, config: ConfigDict) -> tuple[Any, Report]:
    """The model with the weights of a file or a folder, in the layout that its metadata names or its names fit."""
    contents = read_weights(init)
    if layout := contents.metadata.get("layout"):
        return read_torch(init, config, layout, new_head=config.new_head, seed=config.seed)
    fitting = fitting_layouts(contents, model_shapes(config), config)
    if "greenmim" in fitting:
        command = shlex.join(["from-torch", "--layout", fitting[0], "--input", str(init)])
        raise InputError(
            f"init is {str(init)!r}: its names fit layout {' or '.join(fitting)}, and do not tell GreenMIM's order of"
            f" merging or its norms. Say which it is: python -m greenjax.convert {command} --config CONFIG.py"
            " --workdir DIR, and --config.init=DIR after that"
        )
    alike = [name for name in look_alike(contents) if family(config) in LAYOUTS[name]]
    if not fitting and not alike:
        raise InputError(
            f"init is {str(init)!r}: its names are those of no layout of a {config.model.name},"
            f" {', '.join(name for name in LAYOUTS if family(config) in LAYOUTS[name])}"
        )
    layout = (fitting or alike)[0]
    model, report = read_torch(init, config, layout, new_head=config.new_head, seed=config.seed)
    report.notes.insert(0, f"layout {layout}, by the names in the file")
    return model, report


class Head(NamedTuple):
    """The head that `config.init` has: its number of outputs, None without a head, and their names where known."""

    outputs: int | None
    classes: Classes


def initial_head(config: ConfigDict) -> Head:
    """The head that `config.init` has. Raises InputError where classes.json has not a name for each of its outputs."""
    init = expanded(config.init)
    if config.init == "none":
        return Head(None, ())
    if init.is_file() or weights_of(init):
        layouts = [families[family(config)] for families in LAYOUTS.values() if family(config) in families]
        outputs = _head_size(read_weights(init), layouts)
        return Head(outputs, _classes_in(init, outputs) if outputs else ())
    outputs = recorded(config.init).get("model.num_classes")
    return Head(outputs, _written_classes(init, outputs) if outputs else ())


def classes_file(init: str | Path) -> Path:
    """Where the names of a head's classes may be written: in its workdir or folder, or beside its file."""
    path = expanded(init)
    return (path if path.is_dir() else path.parent) / CLASSES


def _classes_in(path: Path, outputs: int) -> Classes:
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
    """The names in classes.json. A run's head may have more outputs than its data have classes."""
    file = classes_file(path)
    names, of_a_run = read_classes(file.parent), (file.parent / "data.json").is_file()
    if names and (len(names) > outputs or (len(names) < outputs and not of_a_run)):
        raise InputError(f"{str(file)!r} has {len(names)} names: expected {outputs}, one for each output of the head")
    return names


def with_image_size(model: Backbone, size: int | tuple[int, ...], resize: str = "geometric") -> tuple[Backbone, Report]:
    """The same model for other images: position bias tables are resized where a window has to change."""
    config = resolve(flatten(model.config) | {"image_size": size})
    report = Report()
    resized = _filled(config, config.seed, fit(flat_weights(model), model_shapes(config), report, resize))
    resized.classes = model.classes
    return resized, report


def with_rgb(model: Backbone) -> Backbone:
    """A classifier of grey images as one that takes RGB, and sees the grey in it.

    The patch embedding is linear, and so is the grey of a pixel: its weights are spread over the three colours.
    """
    config = model.config
    if config.task == "pretrain" or config.model.in_channels != 1:
        found = "a masked image model" if config.task == "pretrain" else f"one of {config.model.in_channels} channels"
        raise InputError(f"rgb is for a classifier of grey images: the model is {found}")
    colours = {"model.in_channels": 3, "data.mean": tuple(config.data.mean) * 3, "data.std": tuple(config.data.std) * 3}
    weights = flat_weights(model)
    kernel = weights[PATCH_EMBED]  # [rows * columns, embed_dim]
    spread = np.array(GREY, np.float32)[None, :, None] * kernel[:, None, :]
    weights[PATCH_EMBED] = spread.reshape(-1, kernel.shape[1])
    coloured = _filled(resolve(flatten(config) | colours), config.seed, weights)
    coloured.classes = model.classes
    return coloured


def model_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """The shape of every array of the model that a resolved config describes, without making it."""
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: build(config)), nnx.Param))
    return {name: tuple(leaf.shape) for name, leaf in flatten_tree(state).items()}


def _filled(config: ConfigDict, seed: int, weights: Weights) -> Any:
    """A model with these weights; arrays that they lack are initialised."""
    if weights.keys() == model_shapes(config).keys():
        graphdef, state = nnx.split(nnx.eval_shape(lambda: build(config)))
        model = nnx.merge(graphdef, state)
    else:
        model = build(config, seed)
        weights = flat_weights(model) | weights
    put_weights(model, weights)
    return model


def _check_metadata(metadata: dict[str, str], config: ConfigDict, layout: str) -> None:
    """What a file of ours says and shapes do not tell. Raises InputError where it is not what was asked for."""
    if metadata.get("layout", layout) != layout:
        raise InputError(f"layout is {layout!r}: the file says {metadata['layout']!r}")
    if "model" not in metadata:
        return
    there, here = json.loads(metadata["model"]), json.loads(describe(config)["model"])
    keys = ["patch", "embed_dim", "embed_dims", "depths", "num_heads", "mlp_ratio", "sr_ratios", "in_channels"]
    keys += ["window"] if family(config) == "twins" else []  # Swin's tables tell, and are resized
    differing = [
        f"model.{key} is {there.get(key)} in the file, {here.get(key)} here"
        for key in keys
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise InputError(
            f"the file is that of another architecture, {metadata['architecture']}: {'; '.join(differing)}"
        )


def _greenmim_norms(config: ConfigDict, layout: str, metadata: dict[str, str]) -> tuple[ConfigDict, list[str]]:
    """GreenMIM's own files want the epsilon that they were trained with."""
    if layout != "greenmim" or "greenjax_version" in metadata or config.model.norm_epsilon == GREENMIM_EPSILON:
        return config, []
    note = (
        f"model.norm_epsilon is {GREENMIM_EPSILON:g}, as in GreenMIM's pre-training, not {config.model.norm_epsilon:g}"
    )
    return resolve(flatten(config) | {"model.norm_epsilon": GREENMIM_EPSILON}), [note]
