"""One update: traced once, sharded over the mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from ml_collections import ConfigDict

from greenjax.data import Batch
from greenjax.training.sharding import BATCH_AXES, batch_sharding, state_shardings
from greenjax.training.state import Counts, State

Metrics = dict[str, Array]


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The compiled update; the state is donated, batches are split over the mesh by mask group."""
    parts = config.optim.accumulation

    def group_loss(params: Any, images: Array, plan: Any, key: Array | None) -> Array:
        return nnx.merge(graphdef, params).forward(images, plan, key).loss

    def loss_fn(params: Any, part: tuple) -> Array:
        # spmd_axis_name keeps the mask groups of sharded computations inside (shard_map) on their devices.
        by_group = jax.vmap(group_loss, in_axes=(None, 0, 0, 0), spmd_axis_name=BATCH_AXES)
        return by_group(params, *part).mean()

    def mean_grads(params: Any, batch: Batch, keys: Array | None) -> tuple[Array, Any]:
        inputs = (batch.images, batch.plan, keys)
        if parts == 1:
            return jax.value_and_grad(loss_fn)(params, inputs)

        def add(total: Any, part: tuple) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, part)), None

        zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zeros, jax.tree.map(lambda x: interleaved(x, parts, mesh), inputs))
        return jax.tree.map(lambda x: x / parts, total)

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        loss, grads = mean_grads(state.params, batch, drop_path_keys(config, state.step))
        grad_norm, rate = optax.tree.norm(grads), schedule(state.step)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        ema = averaged(state.ema, params, config.ema)
        params, ema, opt = _where(finite, (params, ema, opt), (state.params, state.ema, state.opt))
        counts = _counted(state.counts, batch, finite)
        metrics = {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm}
        metrics |= {"param_norm": optax.tree.norm(params), **counts._asdict()}
        return State(state.step + 1, params, ema, opt, counts), metrics

    def sharded(state: State, batch: Batch) -> tuple[State, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # callbacks want to know it: spconv_bridge.py
            state, metrics = train_step(state, batch)
        return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh)), metrics

    return jax.jit(sharded, donate_argnums=0, in_shardings=(None, batch_sharding(mesh)))


def interleaved(x: Array, parts: int, mesh: Mesh) -> Array:
    """[m, ...] -> [parts, m / parts, ...], each part spread over all devices: no group changes its device."""
    split = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, P(None, BATCH_AXES)))


def drop_path_keys(config: ConfigDict, step: Array) -> Array | None:
    """One key a mask group, a pure function of (seed, step, group); None if nothing is dropped."""
    if not config.model.drop_path:
        return None
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step), config.mask.groups)


def averaged(ema: Any, params: Any, decay: float) -> Any:
    """The moving average of the weights after an update; None stays None."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params) if decay else ema


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _counted(counts: Counts, batch: Batch, finite: Array) -> Counts:
    bad = jnp.where(finite, 0, 1).astype(jnp.int32)
    return Counts(
        skipped=counts.skipped + bad,
        skipped_in_a_row=jnp.where(finite, 0, counts.skipped_in_a_row + 1),
        redrawn=counts.redrawn + batch.redrawn.sum(),
        undecodable=counts.undecodable + batch.undecodable.sum(),
    )
