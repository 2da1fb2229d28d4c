"""A model as a file of ONNX: which outputs, the file, and its comparison with the model."""

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.backbones.registry import family_of
from greenjax.config import flatten, resolve
from greenjax.config.inherit import describe
from greenjax.errors import InputError, RunError
from greenjax.interop.files import check_place
from greenjax.interop.loading import blank_model, filled
from greenjax.interop.onnx.operators import Uncovered
from greenjax.interop.onnx.tracing import Specs, traced
from greenjax.interop.weights import finite_weights
from greenjax.models import Backbone, Detector
from greenjax.runtime.checkpoint import flatten_tree
from greenjax.runtime.files import expanded, replacing

LARGEST = 2**31 - 2**24  # bytes of weights: a file holds 2 GiB
TOLERANCE = 1e-4  # times the largest value of an output, or 1


def save_onnx(
    model: Backbone, path: str | Path, *, outputs: Sequence[str] = (), step: int | None = None, overwrite: bool = False
) -> list[str]:
    """Writes *.onnx, in float32: pixels of any number of images [b, h, w, c], as files have them, to `outputs`.

    `outputs`: "logits" [b, classes], "features" [b, c], as `greenjax.embed` gives them, "maps", as `greenjax.features`
    does: stage_0 [b, h, w, c] and so on, and "pyramid" of a detector: level_0 and so on. The default is logits of a
    classifier, the pyramid of a detector, features of any other model. The metadata has `step`. Returns a line with the
    outputs, and one with the difference from the model, if onnxruntime is installed. Raises InputError for what cannot
    be written, RunError where the file computes other numbers, and writes nothing.
    """
    path = check_onnx(path, overwrite)
    outputs = check_outputs(model, outputs)
    weights = finite_weights(model)
    if (size := sum(value.nbytes for value in weights.values())) > LARGEST:
        what = f"a {model.config.model.name} of {size / 2**30:.1f} GiB"
        raise InputError(f"model is {what}: expected less than 2 GiB, the most that a file of ONNX holds")
    onnx: Any = import_module("onnx")  # an extra
    plain = filled(blank_model(in_float32(model.config)), weights, model.config.seed)
    plain.floats_are_raw = True  # the images come from files
    with jax.default_matmul_precision("highest"):
        contents = graph_of(plain, outputs)
        onnx.helper.set_model_props(contents, metadata_of(model, outputs, step))
        onnx.checker.check_model(contents, full_check=True)
        written = contents.SerializeToString()
        compared = compare(written, plain, outputs)
    try:
        with replacing(path) as draft:
            draft.write_bytes(written)
    except OSError as error:
        raise InputError(f"output {str(path)!r} cannot be written: {error.strerror}") from error
    return [f"outputs: {', '.join(value.name for value in contents.graph.output)}", compared]


def check_onnx(path: str | Path, overwrite: bool = False) -> Path:
    """The path to write to, checked before anything expensive. Raises InputError, also where onnx is not installed."""
    path = expanded(path)
    if path.suffix != ".onnx":
        raise InputError(f"output {str(path)!r}: expected a file named *.onnx")
    check_place(path)
    if path.exists() and not overwrite:
        raise InputError(f"output {str(path)!r} is there: expected a new file, or --overwrite")
    if find_spec("onnx") is None:
        raise InputError(f"output is {str(path)!r}: `pip install 'greenjax[onnx]'` installs what writes it")
    return path


def check_outputs(model: Backbone, outputs: Sequence[str]) -> tuple[str, ...]:
    """The outputs of a file, or the default. Raises InputError for one that the model does not have."""
    able, kind = ("features", "maps"), "a model without a head"
    if isinstance(model, Detector):
        able, kind = ("pyramid", "maps"), "a detector"
    elif getattr(model, "head", None) is not None:
        able, kind = ("logits", *able), "a classifier"
    if unable := [name for name in outputs if name not in able]:
        raise InputError(f"outputs has {unable[0]!r}: expected {' or '.join(able)} of {kind}")
    return tuple(dict.fromkeys(outputs)) or able[:1]


def in_float32(config: ConfigDict, **changes: Any) -> ConfigDict:
    """The configuration of the same model, computed by XLA in float32."""
    plain = {"model.dtype": "float32", "model.attention": "xla", "model.sparse_conv": "native", "model.remat": False}
    return resolve(flatten(config) | plain | changes)


def computed(model: Any, outputs: Sequence[str], images: Any, sizes: Any = None) -> dict[str, Any]:
    """The outputs, by their names in the file."""
    found = {"logits": model.forward(images)} if "logits" in outputs else {}
    found |= {"features": model.pooled(images)} if "features" in outputs else {}
    maps = model.feature_maps(images) if "maps" in outputs else []
    levels = model.pyramid(images, sizes) if "pyramid" in outputs else []
    return found | {f"stage_{i}": x for i, x in enumerate(maps)} | {f"level_{i}": x for i, x in enumerate(levels)}


def inputs_of(model: Backbone, outputs: Sequence[str]) -> Specs:
    """What the file takes, for one image: pixels, and for a pyramid the true height and width."""
    pixels = (*model.config.image_size, model.config.model.in_channels)
    sizes = {"sizes": jax.ShapeDtypeStruct((2,), np.int32)} if "pyramid" in outputs else {}
    return {"images": jax.ShapeDtypeStruct(pixels, np.dtype(model.config.data.dtype))} | sizes


def graph_of(model: Backbone, outputs: Sequence[str]) -> Any:
    """The file without metadata. Raises InputError where the model has operations that have no rule."""
    name, graphdef, params = model.config.model.name, nnx.graphdef(model), nnx.state(model, nnx.Param)
    if family_of(name).overlapping or any(spec.kernels for spec in model.specs):
        dense = blank_model(in_float32(model.config, **{"model.sparse_conv": "masked"}))  # with operators of ONNX
        dense.floats_are_raw = True
        graphdef = nnx.graphdef(dense)
    names = dict(zip(map(id, jax.tree.leaves(params)), flatten_tree(nnx.to_pure_dict(params))))

    def forward(params: Any, *arrays: Any) -> dict[str, Any]:
        return computed(nnx.merge(graphdef, params), outputs, *arrays)

    try:
        graph, given, found = traced(forward, params, names, inputs_of(model, outputs))
    except Uncovered as error:
        raise InputError(f"model is a {name}: {error} has no rule in greenjax.interop.onnx.operators") from error
    return graph.model(given, found, name)


def metadata_of(model: Backbone, outputs: Sequence[str], step: int | None) -> dict[str, str]:
    """As in a file of weights: which model, which images, which classes."""
    found = describe(model.config) | {"channels": str(model.config.model.in_channels), "greenjax_version": __version__}
    found |= {"classes": json.dumps(model.classes)} if model.classes and "logits" in outputs else {}
    return found if step is None else found | {"step": str(step)}


def compare(written: bytes, model: Backbone, outputs: Sequence[str]) -> str:
    """A line with the greatest difference of a file from its model, on images of noise, if onnxruntime is installed.

    Raises RunError for a large one.
    """
    if find_spec("onnxruntime") is None:
        return "not compared with the model: `pip install onnxruntime` installs what does"
    runtime: Any = import_module("onnxruntime")
    config, rng, arrays = model.config, np.random.default_rng(0), {}
    for name, one in inputs_of(model, outputs).items():
        noise = rng.standard_normal((2, *one.shape)) * np.mean(config.data.std) + np.mean(config.data.mean)
        most = np.iinfo(one.dtype).max if one.dtype.kind in "iu" else None
        pixels = np.clip(noise * (config.data.scale or most or 1), most and 0, most).astype(one.dtype)
        arrays[name] = pixels if name == "images" else np.full((2, 2), config.image_size, np.int32)
    own = jax.jit(lambda *arrays: computed(model, outputs, *arrays))(*arrays.values())
    found = runtime.InferenceSession(written, providers=["CPUExecutionProvider"]).run(list(own), arrays)
    worst, largest = 0.0, 0.0
    for (name, value), other in zip(own.items(), found):
        most, difference = float(np.abs(value).max()), float(np.abs(np.asarray(value) - other).max())
        worst, largest = max(worst, difference), max(largest, most)
        if not difference <= TOLERANCE * max(1, most):
            what = f"output {name} differs by {difference:.1e} from the model, whose values reach {most:.1f}"
            raise RunError(f"{what}: nothing written")
    return f"onnxruntime {runtime.__version__} differs from the model by {worst:.1e}; its values reach {largest:.1f}"
