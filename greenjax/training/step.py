"""One update: traced once, sharded over the mesh. The same for every task; a task says what its loss is."""

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

from greenjax.runtime.placement import BATCH_AXES, batch_sharding
from greenjax.training.mix import mix, one_hot
from greenjax.training.optim import global_norm
from greenjax.training.sharding import state_shardings
from greenjax.training.state import Counts, State

Metrics = dict[str, Array]


# (batch, step) -> a tree whose leading axis is split over the devices and into the parts of an update.
Inputs = Callable[[Any, Array], Any]
# (parameters, part) -> the mean loss, and top-level parameters that no gradient trains, after it.
Loss = Callable[[Any, Any], tuple[Array, dict[str, Any]]]


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """The compiled update of pre-training; the state is donated, batches are split over the mesh by mask group."""

    def inputs(batch: Any, step: Array) -> tuple:
        return batch.images, batch.plan, drop_path_keys(config, config.seed, step, config.mask.groups)

    return _make_update(inputs, pretraining_loss(graphdef), tx, schedule, config, mesh)


def pretraining_loss(graphdef: nnx.GraphDef) -> Loss:
    """The loss of mask groups (images, plan, drop-path keys or None), each under its own mask."""

    def group_loss(params: Any, images: Array, plan: Any, key: Array | None) -> Array:
        return nnx.merge(graphdef, params).forward(images, plan, key).loss

    def loss(params: Any, part: tuple) -> tuple[Array, dict[str, Any]]:
        # spmd_axis_name keeps the mask groups of sharded computations inside (shard_map) on their devices.
        by_group = jax.vmap(group_loss, in_axes=(None, 0, 0, 0), spmd_axis_name=BATCH_AXES)
        return by_group(params, *part).mean(), {}

    return loss


def make_classifier_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
    seed: int | Array | None = None,
) -> jax.stages.Wrapped:
    """The compiled update of fine-tuning, or of a linear probe; batches are split over the mesh by image.

    Images are mixed before the batch is split into parts, so accumulation does not change who is mixed with whom.
    `seed` stands in for the config's: runs that share one compiled step trace it.
    """
    data, classes, smoothing = config.data, config.model.num_classes, config.optim.label_smoothing
    own = config.seed if seed is None else seed

    def inputs(batch: Any, step: Array) -> tuple:
        key = jax.random.fold_in(jax.random.key(own), step)
        targets = one_hot(batch.labels, classes, smoothing)
        options = dict(mixup=data.mixup, cutmix=data.cutmix, prob=data.mix_prob, switch=data.mix_switch)
        images, targets = mix(batch.images, targets, jax.random.fold_in(key, 1), **options)
        return images, targets, drop_path_keys(config, own, step, len(images))

    def loss(params: Any, part: tuple) -> tuple[Array, dict[str, Any]]:
        model, (images, targets, keys) = nnx.merge(graphdef, params), part
        if config.task == "linear":
            logits, statistics = model.probe(images)
            untrained = {"batch_norm": statistics}
        else:
            # One key a part: it draws for each of its images.
            logits, untrained = model.forward(images, None if keys is None else keys[0]), {}
        return optax.softmax_cross_entropy(logits, targets).mean(), untrained

    return _make_update(inputs, loss, tx, schedule, config, mesh)


def _make_update(
    inputs: Inputs,
    loss: Loss,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    parts, everywhere = config.optim.accumulation, NamedSharding(mesh, P())

    def of_whole(params: Any, part: Any) -> tuple[Array, dict[str, Any]]:
        # Parameters that are split over fsdp meet here, one by one. Left to itself XLA would rather split what is
        # computed with them, and exchange activations.
        return loss(jax.lax.with_sharding_constraint(params, everywhere), part)

    of_part = jax.value_and_grad(of_whole, has_aux=True)

    def mean_grads(params: Any, whole: Any) -> tuple[tuple[Array, dict[str, Any]], Any]:
        if parts == 1:
            return of_part(params, whole)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of_part(params, part)), None

        split = jax.tree.map(lambda x: interleaved(x, parts, mesh), whole)
        first = jax.tree.map(lambda x: x[0], split)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_part, params, first))
        total, _ = jax.lax.scan(add, zeros, split)
        return jax.tree.map(lambda x: x / parts, total)

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        (loss, untrained), grads = mean_grads(state.params, inputs(batch, state.step))
        grad_norm, rate = global_norm(grads), jnp.asarray(schedule(state.step), jnp.float32)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt = tx.update(grads, state.opt, state.params, finite=finite)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates) | untrained
        ema = averaged(state.ema, params, config.ema)
        params, ema = _where(finite, (params, ema), (state.params, state.ema))
        counts = _counted(state.counts, batch, finite)
        metrics = {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm}
        metrics |= {"param_norm": global_norm(params), **_told(counts)}
        return State(state.step + 1, params, ema, opt, counts), metrics

    def update(state: State, batch: Any) -> tuple[State, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # callbacks want to know it: spconv_bridge.py
            state, metrics = step(state, batch)
        return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh)), metrics

    return jax.jit(update, donate_argnums=0, in_shardings=(None, batch_sharding(mesh)))


def interleaved(x: Array, parts: int, mesh: Mesh) -> Array:
    """[m, ...] -> [parts, m / parts, ...], each part spread over all devices: nothing changes its device."""
    split = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, P(None, BATCH_AXES)))


def drop_path_keys(config: ConfigDict, seed: int | Array, step: Array, count: int) -> Array | None:
    """`count` keys, a pure function of (seed, step, place); None if nothing is dropped."""
    if not config.model.drop_path:
        return None
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step), count)


def averaged(ema: Any, params: Any, decay: float) -> Any:
    """The moving average of the weights after an update; None stays None."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params) if decay else ema


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _told(counts: Counts) -> dict[str, Array]:
    """The counts under their names in the metrics, where `undecodable` is the number of different images."""
    told = counts._asdict()
    return told | {"replaced": told.pop("undecodable")}


def _counted(counts: Counts, batch: Any, finite: Array) -> Counts:
    bad = jnp.where(finite, 0, 1).astype(jnp.int32)
    redrawn = batch.redrawn.sum(dtype=jnp.int32) if hasattr(batch, "redrawn") else 0  # images with labels have no masks
    return Counts(
        skipped=counts.skipped + bad,
        skipped_in_a_row=jnp.where(finite, 0, counts.skipped_in_a_row + 1),
        redrawn=counts.redrawn + redrawn,
        undecodable=counts.undecodable + batch.undecodable.sum(dtype=jnp.int32),
    )
