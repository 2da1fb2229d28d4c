"""A model that is applied to images, and its outputs for each of them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.backbones.attention import runnable
from greenjax.config import flatten, resolve
from greenjax.config.settings import READING
from greenjax.data.loader import LEFT_OUT, image_batches
from greenjax.data.undecodable import Fault, Undecodable
from greenjax.evaluation.outputs import model_outputs
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import find_devices
from greenjax.tasks.evaluate import given_model
from greenjax.training.sharding import make_mesh
from greenjax.training.state import Params, parameters

NOT_FINITE = "the model's output is not finite"

Forward = Callable[[Any, Any], Any]  # (parameters, images [b, h, w, c]) -> outputs [b, ...]


class Model(NamedTuple):
    """The structure and the weights of a model, on every device of a mesh; `data.batch_size` is that of every call."""

    config: ConfigDict
    graphdef: nnx.GraphDef
    params: Params
    mesh: Mesh


def model_of_init(config: ConfigDict, images: int, step: int | None = None) -> Model:
    """The model of `config.init`, for so many images. Raises InputError as an evaluation does."""
    config = with_batch(config, images)
    mesh = make_mesh(config)
    return Model(config, *given_model(config, mesh, step), mesh)


def model_of(model: Any, images: int, batch_size: int) -> Model:
    """A model of Python for so many images, in batches as of `with_batch`. The caller's own stays as it is."""
    kept = ("image_size", "data.mean", "data.std", "data.scale", "data.eval_crop", *READING)
    there = flatten(model.config)
    settings = {key: value for key, value in there.items() if key in kept or key.startswith("model.")}
    given = {"task": "knn", "init": "none", "data.source": "python", "data.batch_size": batch_size}
    config = with_batch(resolve(settings | given), images)
    mesh = make_mesh(config)
    own = model.for_files()
    params = Placement(mesh).everywhere(jax.tree.map(np.asarray, parameters(own)))
    return Model(config, nnx.graphdef(own), params, mesh)


def with_batch(config: ConfigDict, images: int) -> ConfigDict:
    """The configuration with a batch that is no larger than the images need.

    It is rounded down to a multiple of the devices, and has an image for each of them at least: outputs do not depend
    on it. Where its attention kernel cannot run, XLA computes the same, as in a model of `greenjax.load`.
    """
    devices = len(find_devices()) if config.mesh.data == -1 else config.mesh.data * config.mesh.fsdp
    of_each = max(1, min(config.data.batch_size // devices, -(-images // devices)))
    here = {"data.batch_size": of_each * devices, "model.attention": runnable(config.model.attention)}
    return resolve(flatten(config) | here)


def outputs(
    model: Model, forward: Forward, source: Any, first: int = 0, undecodable: Undecodable | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """By batch, from batch `first` on: the numbers of the images that can be used, in order, and their outputs.

    An image whose output is not finite cannot be used either. Call it inside
    `jax.set_mesh(model.mesh)`: kernels need it (ops/fused_attention.py).
    """
    place, size = Placement(model.mesh), model.config.data.batch_size
    undecodable = Undecodable() if undecodable is None else undecodable
    batches = image_batches(model.config, source, first, place.own(size), undecodable)
    try:
        for batch, (output, _, valid) in enumerate(model_outputs(forward, model.params, batches, place), first):
            fine = valid & np.isfinite(output.reshape(len(output), -1)).all(axis=1)
            bad = batch * size + np.flatnonzero(valid & ~fine)
            undecodable.add([Fault(source.name_of(int(number)), NOT_FINITE) for number in bad], LEFT_OUT)
            yield batch * size + np.flatnonzero(fine), output[fine]
    finally:
        batches.close()
