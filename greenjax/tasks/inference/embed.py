"""Vectors of images: the pooled features of an encoder, or the map of one of its stages."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from greenjax.config import load_config
from greenjax.errors import InputError
from greenjax.evaluation.outputs import pooled_forward
from greenjax.runtime.console import say
from greenjax.tasks.inference.files import NONE_USED, drafted
from greenjax.tasks.inference.formats import VECTORS, Outputs, finish_vectors
from greenjax.tasks.inference.images import check_images, python_images
from greenjax.tasks.inference.model import Forward, Model, model_of, model_of_init, outputs

TASK = "knn"  # the task of a config whose model is an encoder without a head


def embed_files(
    config: ConfigDict,
    source: Any,
    files: Outputs,
    *,
    stage: int | None = None,
    dtype: str = "float32",
    step: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the vectors of all images of a source by the model of `config.init`, and their names.

    `stage`: the map [h, w, c] of that stage, counted from 0, in place of the pooled features. A killed process goes on
    where it was. Raises InputError for anything that cannot be, before the first image is computed.
    """
    check_stage(config, stage)
    check_images(config, source)
    model = model_of_init(config, len(source), step)
    forward = vectors(model.graphdef, stage)
    shape, kind = shape_of(model, forward), np.dtype(dtype)
    say(f"computing {'x'.join(map(str, shape))} {dtype} of each of {len(source):,} images ...")
    about = {"stage": stage, "dtype": dtype}
    row = np.dtype([(VECTORS, kind, shape)])
    with drafted(model, forward, source, files, row, about, lambda v: narrowed(v, kind), overwrite) as draft:
        finish_vectors(draft, files, kind, shape)


def embed(
    model: Any, images: Any, *, stage: int | None = None, batch_size: int = 256
) -> tuple[Float[np.ndarray, "n c"] | Float[np.ndarray, "n h w c"], list[str]]:
    """The pooled features of images, float32, and the names of the images; or their maps at the end of a stage.

    `model` is one of greenjax, the workdir of a run, or a file of weights that greenjax wrote. `images`: the path of a
    folder, of a list or of an image, or a sequence of paths; or images as in `model.embed`: pixels [h, w] or
    [h, w, c], a PIL image, the bytes of a file, or several. They are resized and cropped as in evaluation. `stage`
    counts from 0, as in `greenjax.features`. `batch_size` images are computed at a time, on all devices together,
    or the next smaller multiple of the devices; a smaller batch needs less memory. An image that cannot be used is
    named in a warning and left out. Raises InputError where none can be used, and for pooled features of a detector.
    """
    if isinstance(model, str | Path):
        given = {"init": str(model), "data.source": "python", "data.batch_size": batch_size}
        config = load_config(TASK, given, task=TASK)
        source = python_images(config, images)
        loaded = model_of_init(config, len(source))
    else:
        source = python_images(model.config, images)
        loaded = model_of(model, len(source), batch_size)
    check_stage(loaded.config, stage)
    check_images(loaded.config, source)
    names: list[str] = []
    found: list[np.ndarray] = []
    with jax.set_mesh(loaded.mesh):
        for numbers, output in outputs(loaded, vectors(loaded.graphdef, stage), source):
            names += [source.name_of(int(number)) for number in numbers]
            found.append(output)
    if not names:
        raise InputError(NONE_USED.format(len(source)))
    return np.concatenate(found), names


def vectors(graphdef: nnx.GraphDef, stage: int | None) -> Forward:
    """The function of (parameters, images): pooled features [b, c], or the map [b, h, w, c] of a stage; float32."""
    if stage is None:
        return pooled_forward(graphdef)

    def maps(params: Any, images: Any) -> Float[Array, "b h w c"]:
        return nnx.merge(graphdef, params).feature_maps(images)[stage].astype("float32")

    return maps


def shape_of(model: Model, forward: Forward) -> tuple[int, ...]:
    """The shape of one output. Nothing is computed."""
    config = model.config
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.model.in_channels), config.data.dtype)
    return jax.eval_shape(forward, model.params, images).shape[1:]


def narrowed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The vectors in the type of the file. Raises InputError for values beyond it."""
    if values.size and np.abs(values).max() > np.finfo(dtype).max:
        raise InputError(
            f"dtype is {dtype.name!r}: expected 'float32' for vectors that reach {np.abs(values).max():.0f}"
        )
    return values.astype(dtype)


def check_stage(config: ConfigDict, stage: int | None) -> None:
    """Raises InputError for a stage that the model does not have."""
    last = len(config.model.depths) - 1
    if stage is not None and not 0 <= stage <= last:
        raise InputError(f"stage is {stage}: expected 0 to {last} for a {config.model.name}")
