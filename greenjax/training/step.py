"""One update: traced once, sharded over the mesh, the same for every task. A `Task` says what its loss is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from ml_collections import ConfigDict

from greenjax.runtime.placement import BATCH_AXES, batch_sharding
from greenjax.training.optim import global_norm, make_optimizer
from greenjax.training.sharding import state_shardings
from greenjax.training.state import Counts, Params, State

Metrics = dict[str, Array]
Batch = TypeVar("Batch")
Part = TypeVar("Part")


class Extras(NamedTuple):
    """What a loss gives beside its mean."""

    untrained: Params  # new values of top-level parameters that no gradient trains
    metrics: Metrics  # scalars for metrics.jsonl, such as the terms of the loss


@dataclass(frozen=True)
class Task(Generic[Batch, Part]):
    """What an update trains, and on what loss: see tasks/pretrain.py and tasks/classify.py.

    The leading axis of a batch, mask groups or images with labels, is split over the devices and into the
    `optim.accumulation` parts of an update. `loss(params, (part, keys))` takes one part, with a key for drop-path for
    each row of its leading axis, or None, and returns the mean loss with its `Extras`. `prepare(batch, step)` makes the
    inputs of the loss from a whole batch; by default they are it.
    """

    config: ConfigDict
    graphdef: nnx.GraphDef
    loss: Callable[[Params, tuple[Part, Array | None]], tuple[Array, Extras]]
    seed: int | Array  # of drop-path and `prepare`
    prepare: Callable[[Batch, Array], Part] = lambda batch, step: batch  # type: ignore[assignment]

    def inputs(self, batch: Batch, step: Array) -> tuple[Part, Array | None]:
        """The inputs of the loss from a whole batch. The keys of drop-path are a pure function of (seed, step, row)."""
        if not self.config.model.drop_path:
            return self.prepare(batch, step), None
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        return self.prepare(batch, step), jax.random.split(key, len(jax.tree.leaves(batch)[0]))


def make_update(task: Task, mesh: Mesh, schedule: optax.Schedule) -> jax.stages.Wrapped:
    """The jitted update (state, batch) -> (state, metrics). It donates the state and splits the batch over the mesh.

    An update whose loss or gradient is not finite changes nothing but the step and the counts.
    """
    tx, gradients = make_optimizer(task.config), _mean_gradients(task, mesh)

    def updated(state: State, batch: Any) -> tuple[State, Metrics]:
        (loss, extras), grads = gradients(state.params, task.inputs(batch, state.step))
        grad_norm, rate = global_norm(grads), jnp.asarray(schedule(state.step), jnp.float32)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt = tx.update(grads, state.opt, state.params, finite=finite)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates) | extras.untrained
        ema = averaged(state.ema, params, task.config.ema)
        params, ema = jax.tree.map(partial(jnp.where, finite), (params, ema), (state.params, state.ema))
        counts = _counted(state.counts, batch, finite)
        metrics = {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm, "param_norm": global_norm(params)}
        metrics |= extras.metrics | counts._asdict()
        metrics["replaced"] = metrics.pop("undecodable")  # in metrics.jsonl "undecodable" counts different images
        return State(state.step + 1, params, ema, opt, counts), metrics

    def update(state: State, batch: Any) -> tuple[State, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for callbacks: ops/spconv_bridge.py
            state, metrics = updated(state, batch)
        return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh)), metrics

    return jax.jit(update, donate_argnums=0, in_shardings=(None, batch_sharding(mesh)))


def _mean_gradients(task: Task, mesh: Mesh) -> Callable[[Params, Any], tuple[tuple[Array, Extras], Params]]:
    """(params, inputs of a whole batch) -> ((loss, extras), gradients), means over the parts."""
    parts, everywhere = task.config.optim.accumulation, NamedSharding(mesh, P())

    def loss(params: Params, part: Any) -> tuple[Array, Extras]:
        # Gathers parameters that are split over fsdp, one by one. Left to itself XLA would rather split what is
        # computed with them, and exchange activations.
        return task.loss(jax.lax.with_sharding_constraint(params, everywhere), part)

    of_part = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return of_part

    def of_whole(params: Params, whole: Any) -> Any:
        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of_part(params, part)), None

        split = jax.tree.map(lambda x: interleaved(x, parts, mesh), whole)
        first = jax.tree.map(lambda x: x[0], split)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_part, params, first))
        total, _ = jax.lax.scan(add, zeros, split)
        return jax.tree.map(lambda x: x / parts, total)

    return of_whole


def interleaved(x: Array, parts: int, mesh: Mesh) -> Array:
    """[m, ...] -> [parts, m / parts, ...], each part spread over all devices: no row changes its device."""
    split = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, P(None, BATCH_AXES)))


def averaged(ema: Params | None, params: Params, decay: float) -> Params | None:
    """The moving average of the weights after an update; None stays None."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params) if decay else ema


def _counted(counts: Counts, batch: Any, finite: Array) -> Counts:
    bad = jnp.where(finite, 0, 1).astype(jnp.int32)
    redrawn = batch.redrawn.sum(dtype=jnp.int32) if hasattr(batch, "redrawn") else 0  # batches with labels: no masks
    return Counts(
        skipped=counts.skipped + bad,
        skipped_in_a_row=jnp.where(finite, 0, counts.skipped_in_a_row + 1),
        redrawn=counts.redrawn + redrawn,
        undecodable=counts.undecodable + batch.undecodable.sum(dtype=jnp.int32),
    )
