"""Weights in and out of files, workdirs and models: what the commands and the Python interface call."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.atomic import expanded, replace_text
from greenjax.checkpoint import Checkpointer, flatten_tree
from greenjax.config import flatten, read_recorded, resolve
from greenjax.errors import InputError
from greenjax.interop.files import SAFETENSORS, check_output, read_tensors, write_tensors
from greenjax.interop.huggingface import folder_config, image_processor
from greenjax.interop.layouts import check_geometry, describe, family, find_layout
from greenjax.interop.resize import METHODS
from greenjax.interop.weights import Report, Weights, fit, flat_weights, folded, from_tensors, put_weights, to_tensors
from greenjax.models import Backbone, build
from greenjax.models.attention import check_attention

GREENMIM_EPSILON = 1e-6  # of the norms in GreenMIM's pre-training


def load_torch(
    path: str | Path,
    config: ConfigDict,
    layout: str,
    *,
    merge_order: str = "swin",
    resize: str = "geometric",
    new_head: bool = False,
    seed: int = 0,
) -> Any:
    """The model that `config` describes, with the weights of a PyTorch file or a folder of transformers.

    The encoder has to be there whole. What else the file lacks stays as `seed` initialised it, what the model lacks
    is dropped, and position bias tables of another window are resized ("geometric", "bicubic", or "none" to refuse);
    a log line names each. `merge_order` "raster" is for GreenMIM files pre-trained in raster order; with `new_head`
    a classifier keeps its new head. Raises InputError, and loads nothing, if anything does not fit.
    """
    model, report = read_torch(
        path, resolve(config), layout, merge_order=merge_order, resize=resize, new_head=new_head, seed=seed
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
) -> tuple[Any, Report]:
    """As `load_torch`, of a resolved config, with a report in place of log lines."""
    if resize not in METHODS:
        raise InputError(f"resize is {resize!r}: expected {' or '.join(METHODS)}")
    find_layout(layout, config, merge_order)
    tensors, metadata = read_tensors(path)
    _check_metadata(metadata, config, layout)
    config, notes = _greenmim_norms(config, layout, metadata)
    shapes = model_shapes(config)
    weights, report = from_tensors(tensors, shapes, config, layout, merge_order, new_head=new_head)
    report.notes += notes
    return _filled(config, seed, fit(weights, shapes, report, resize)), report


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
    if path.suffix:
        write_tensors(path, tensors, metadata)
    else:
        parts = {name.partition("/")[0] for name in weights} - set(left_out)
        replace_text(path / "config.json", json.dumps(folder_config(config, parts), indent=2) + "\n")
        replace_text(path / "preprocessor_config.json", json.dumps(image_processor(config), indent=2) + "\n")
        write_tensors(path / "model.safetensors", tensors, metadata)
    return ([f"left out: {', '.join(left_out)}"] if left_out else []) + notes


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
    return _filled(config, config.seed, weights), step


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
    """The model that `config.init` names weights for, a workdir or a converted file; None for "none"."""
    init = expanded(config.init)
    if config.init == "none":
        return None
    if init.suffix in SAFETENSORS:
        _, metadata = read_tensors(init)
        if "layout" not in metadata:
            raise InputError(
                f"init is {config.init!r}: its metadata names no layout; greenjax.convert from-torch takes it"
            )
        return read_torch(init, config, metadata["layout"], new_head=config.new_head, seed=config.seed)
    weights, of, _ = read_run(init)
    if family(of) != family(config):
        raise InputError(f"init is {config.init!r}, a {of.model.name}: expected a {config.model.name}")
    report = Report()
    fitted = fit(weights, model_shapes(config), report, new_head=config.new_head)
    return _filled(config, config.seed, fitted), report


def with_image_size(model: Backbone, size: int | tuple[int, ...], resize: str = "geometric") -> tuple[Backbone, Report]:
    """The same model for other images: position bias tables are resized where a window has to change."""
    config = resolve(flatten(model.config) | {"image_size": size})
    report = Report()
    return _filled(config, config.seed, fit(flat_weights(model), model_shapes(config), report, resize)), report


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
