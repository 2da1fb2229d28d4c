"""The length of a run, the learning rate of each step, and the optimizer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from greenjax.errors import InputError
from greenjax.models.parameters import decayed, layers
from greenjax.ops.primitives import hold


def run_length(config: ConfigDict, images: int) -> tuple[int, int]:
    """The number of updates of a run and of its warm-up, for a training split of `images` images."""
    if config.steps is not None:
        return config.steps, config.optim.warmup_steps
    total, warmup = (
        epochs * images // config.data.batch_size for epochs in (config.epochs, config.optim.warmup_epochs)
    )
    if total < 1:
        raise InputError(
            f"epochs is {config.epochs}: expected enough for one batch of {config.data.batch_size} from {images} images"
        )
    if warmup >= total:
        raise InputError(
            f"optim.warmup_epochs is {config.optim.warmup_epochs}: {warmup} of {total} steps, expected fewer"
        )
    return total, warmup


def learning_rate(config: ConfigDict, total: int, warmup: int) -> optax.Schedule:
    """The learning rate of each step: a linear warm-up, then half a cosine, or steps down at shares of the run.

    All rates are multiplied by data.batch_size / 256, the linear scaling rule of arXiv 1706.02677. The batch is that of
    one update, over all devices and accumulation steps.
    """
    optim = config.optim
    scale = config.data.batch_size / 256
    peak, lowest = peak_rate(config), optim.min_lr * scale
    if optim.schedule == "steps":
        falls = {round(share * total) - warmup: optim.steps_factor for share in optim.steps_at}
        rising = optax.linear_schedule(optim.warmup_lr * scale, peak, max(warmup, 1))
        return optax.join_schedules([rising, optax.piecewise_constant_schedule(peak, falls)], [warmup])
    if not warmup:
        return optax.cosine_decay_schedule(peak, total, alpha=lowest / peak)
    return optax.warmup_cosine_decay_schedule(optim.warmup_lr * scale, peak, warmup, total, lowest)


def peak_rate(config: ConfigDict) -> float:
    """The highest learning rate, at the end of the warm-up."""
    return config.optim.base_lr * (config.data.batch_size / 256)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """AdamW with updates scaled by `optim.layer_decay`, as in BEiT; the head of a linear probe by AdamW or LARS.

    The updates lack the learning rate: training/step.py multiplies them by it, so that skipped updates do not delay the
    schedule. `update` takes one argument more, `finite`: where it is False, the optimizer's state does not change. LARS
    is that of arXiv 1708.03888.
    """
    optim = config.optim
    clip = [clip_by_global_norm(optim.clip)] if optim.clip else []
    matrices = partial(decayed, config)
    decay = optax.add_decayed_weights(optim.weight_decay, mask=matrices)
    if optim.name == "lars":
        # Trust ratios of matrices alone: the norm of a bias is no scale for its step.
        trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), matrices)
        chain = optax.chain(*clip, decay, trust, kept_if_not_finite(optax.trace(optim.b1)))
    else:
        chain = optax.chain(*clip, scale_by_adam(optim.b1, optim.b2, optim.eps), decay)
    if config.task == "linear":
        return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, _head_alone)
    if optim.layer_decay < 1:
        scale = partial(layer_multipliers, config)
        return optax.chain(chain, optax.stateless(lambda updates, _: jax.tree.map(_scaled, updates, scale(updates))))
    return chain


def global_norm(tree: Any) -> Array:
    """The L2 norm of all leaves together, as optax.tree.norm.

    Two of three leaves are vectors, with few elements: they are joined and summed in one loop. A loop for each would
    be a third of all loops of a compiled update, and XLA on the CPU would take longer to load it.
    """
    leaves = jax.tree.leaves(tree)
    vectors = [leaf.ravel() for leaf in leaves if leaf.ndim < 2]
    parts = [leaf for leaf in leaves if leaf.ndim >= 2] + ([jnp.concatenate(vectors)] if vectors else [])
    return jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in parts))


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients whose norm is above `limit` down to it, as optax.clip_by_global_norm.

    Optax divides, and XLA stores the quotients; XLA fuses this multiplication into the optimizer's own loops.
    """

    def clipped(grads: Any, params: Any) -> Any:
        del params
        factor = jnp.minimum(1, limit / global_norm(grads))
        return jax.tree.map(lambda g: g * factor, grads)

    return optax.stateless(clipped)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Adam (arXiv 1412.6980), with the results of optax.scale_by_adam and less traffic to memory.

    Without `hold`, XLA on the CPU computes the new moments a second time where it updates the parameters. It reads the
    old ones twice for that, and copies them first, because the new ones take their place in memory.
    """

    def update(updates: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any) -> tuple[Any, Any]:
        del params
        grads = updates
        count = state.count + jnp.where(finite, 1, 0)
        correction1, correction2 = (jnp.asarray(1 - b**count, jnp.float32) for b in (b1, b2))

        @partial(jax.jit, inline=True)  # traced once a shape, for hundreds of leaves
        def of_leaf(g: Array, mu: Array, nu: Array) -> tuple[Array, Array, Array]:
            mu = jnp.where(finite, b1 * mu + (1 - b1) * g, mu)
            nu = jnp.where(finite, b2 * nu + (1 - b2) * g * g, nu)
            mu, nu = hold((mu, nu))
            return (mu / correction1) / (jnp.sqrt(nu / correction2) + eps), mu, nu

        leaves = jax.tree.map(of_leaf, grads, state.mu, state.nu)
        updates, mu, nu = jax.tree.transpose(jax.tree.structure(grads), None, leaves)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)


def kept_if_not_finite(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner`, with a state that does not change where `finite` is False."""

    def update(updates: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any) -> tuple[Any, Any]:
        updates, new = inner.update(updates, state, params)
        return updates, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scaled(update: Any, multiplier: float) -> Any:
    return update * multiplier


def _head_alone(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: "trained" if path[0].key == "head" else "frozen", params)


def layer_multipliers(config: ConfigDict, params: Any) -> Any:
    """optim.layer_decay ** (layers above) for every parameter: 1 at the last layer, least at the patch embedding."""
    of_params = layers(config, params)
    last = max(jax.tree.leaves(of_params))
    return jax.tree.map(lambda layer: config.optim.layer_decay ** (last - layer), of_params)
