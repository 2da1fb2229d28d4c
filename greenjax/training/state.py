"""The training state that a checkpoint holds. It is born placed on its mesh, before the first step."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int32
from ml_collections import ConfigDict, FrozenConfigDict

from greenjax.models import build
from greenjax.training.optim import make_optimizer
from greenjax.training.sharding import spread, state_shardings

Params = dict[str, Any]  # a tree of arrays


class Counts(NamedTuple):
    """Events of the whole run, resumes included."""

    skipped: Int32[Array, ""]  # updates that were not finite
    skipped_in_a_row: Int32[Array, ""]
    redrawn: Int32[Array, ""]  # masks that did not fit the layouts
    undecodable: Int32[Array, ""]  # images that were replaced by the next one, counted at each replacement


class State(NamedTuple):
    """Everything that an update changes. The position in the data follows from `step`."""

    step: Int32[Array, ""]
    params: Any
    ema: Any  # moving average of params; None where `config.ema` is 0
    opt: optax.OptState
    counts: Counts

    @property
    def weights(self) -> Params:
        """The weights to judge: their moving average where there is one."""
        return self.params if self.ema is None else self.ema


def parameters(model: nnx.Module) -> Params:
    """The parameters of a model as a tree."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def drawn_parameters(config: ConfigDict) -> Params:
    """Fresh parameters, drawn from `config.seed`."""
    return parameters(build(config, config.seed))


def model_graph(config: ConfigDict) -> nnx.GraphDef:
    """The structure of the model, without its parameters."""
    return abstract_model(FrozenConfigDict(config))[0]


@lru_cache(maxsize=8)
def abstract_model(config: FrozenConfigDict) -> tuple[nnx.GraphDef, Params]:
    """The structure of the model and its abstract parameters. Cached: tracing a large model takes half a second."""
    model = nnx.eval_shape(lambda: build(config, config.seed))
    model.floats_are_raw = True  # a run's images come from files
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def on_the_cpu() -> AbstractContextManager:
    """Draws and reads weights on the CPU, if JAX has it as a device: no accelerator ever holds all of them."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


def _first(config: ConfigDict, params: Params) -> State:
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if config.ema else None  # a copy: the state is donated leaf by leaf
    return State(zero, params, ema, make_optimizer(config).init(params), Counts(zero, zero, zero, zero))


def abstract_state(config: ConfigDict, mesh: Mesh) -> State:
    """Shapes, types and shardings of the state: what a checkpoint is restored onto."""
    shapes = jax.eval_shape(partial(_first, config), abstract_model(FrozenConfigDict(config))[1])
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def init_state(config: ConfigDict, mesh: Mesh, params: Params | None = None) -> State:
    """The state before the first step, with the shardings of all later ones: otherwise the update compiles twice.

    `params` are the weights to start from; None draws them from `config.seed`, the same on any mesh.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    if params is None:
        with on_the_cpu():
            params = drawn_parameters(config)
    params = spread(params, shardings.params)
    return jax.jit(partial(_first, config), out_shardings=shardings, donate_argnums=0)(params)
