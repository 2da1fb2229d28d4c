"""Optimizers, their rates by layer, and the learning rate per step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from greenjax.backbones.registry import family_of
from greenjax.errors import InputError
from greenjax.ops.primitives import hold


def run_length(config: ConfigDict, images: int) -> tuple[int, int]:
    """Updates of the whole run, and of its warm-up, for a training split of so many images."""
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
    """Linear warm-up, then half a cosine, per step; all rates are multiplied by batch size / 256.

    The linear scaling rule is that of arXiv 1706.02677; the batch is the effective one, all devices and accumulation.
    """
    optim = config.optim
    scale = config.data.batch_size / 256
    peak, lowest = peak_rate(config), optim.min_lr * scale
    if not warmup:
        return optax.cosine_decay_schedule(peak, total, alpha=lowest / peak)
    return optax.warmup_cosine_decay_schedule(optim.warmup_lr * scale, peak, warmup, total, lowest)


def peak_rate(config: ConfigDict) -> float:
    """The highest learning rate, at the end of the warm-up."""
    return config.optim.base_lr * (config.data.batch_size / 256)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """The optimizer without its learning rate, which the step multiplies: there it follows the step, not the updates.

    Its `update` takes one thing more, `finite`: where that is False, the state stays as it was.

    AdamW, its updates scaled by `optim.layer_decay` (LAMB's and BEiT's way: the rate of a layer, not its gradient). A
    linear probe trains its head only, by LARS (arXiv 1708.03888) or AdamW.
    """
    optim = config.optim
    clip = [clip_by_global_norm(optim.clip)] if optim.clip else []
    matrices = partial(decayed, config)
    decay = optax.add_decayed_weights(optim.weight_decay, mask=matrices)
    if optim.name == "lars":
        # Matrices only: the norm of a bias says nothing of the step it can take.
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
    """The L2 norm of all leaves together: optax.tree.norm.

    Vectors, two of three leaves with hardly an element, are summed as one. With a sum for each, a third of the loops of
    a compiled update would be theirs, and XLA on the CPU takes the longer to load it.
    """
    leaves = jax.tree.leaves(tree)
    vectors = [leaf.ravel() for leaf in leaves if leaf.ndim < 2]
    parts = [leaf for leaf in leaves if leaf.ndim >= 2] + ([jnp.concatenate(vectors)] if vectors else [])
    return jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in parts))


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients whose norm is above `limit` down to it.

    optax's divides every element, and XLA stores what it has divided; a multiplication is fused into what comes next.
    """

    def clipped(grads: Any, params: Any) -> Any:
        del params
        factor = jnp.minimum(1, limit / global_norm(grads))
        return jax.tree.map(lambda g: g * factor, grads)

    return optax.stateless(clipped)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Adam (arXiv 1412.6980): optax.scale_by_adam, whose results it gives, with less traffic to memory.

    Left to itself XLA on the CPU computes the new moments again where it updates the parameters, reads the old ones
    twice, and has to copy them first, because the new ones are written in their place. Held, the new ones are read.
    """

    def update(updates: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any) -> tuple[Any, Any]:
        del params
        grads = updates
        count = state.count + jnp.where(finite, 1, 0)
        correction1, correction2 = (jnp.asarray(1 - b**count, jnp.float32) for b in (b1, b2))

        @partial(jax.jit, inline=True)  # traced once a shape: there are hundreds of leaves
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
    """`inner`, whose state stays as it was where `finite` is False."""

    def update(updates: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any) -> tuple[Any, Any]:
        updates, new = inner.update(updates, state, params)
        return updates, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scaled(update: Any, multiplier: float) -> Any:
    return update * multiplier


def _head_alone(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: "trained" if path[0].key == "head" else "frozen", params)


def layer_multipliers(config: ConfigDict, params: Any) -> Any:
    """optim.layer_decay ** (layers above) for every parameter: 1 at the head, least at the patch embedding.

    Patch embedding and mask token are layer 0, blocks follow one by one; the final norm goes with the head, and other
    modules of a stage with the block that the backbone's family names.
    """
    depths, family = config.model.depths, family_of(config.model.name)
    last = sum(depths) + 1

    def multiplier(path: tuple, _: Any) -> float:
        names = [entry.key for entry in path]
        inside = names[0] == "encoder"
        layer = family.layer(names[1:], depths) if inside else 0 if names[0] == "mask_token" else last
        return config.optim.layer_decay ** (last - layer)

    return jax.tree.map_with_path(multiplier, params)


def decayed(config: ConfigDict, params: Any) -> Any:
    """True for matrices; not for biases, norms, position bias tables, mask tokens, nor what the family leaves out."""
    undecayed = family_of(config.model.name).undecayed

    def is_matrix(path: tuple, _: Any) -> bool:
        names = [entry.key for entry in path]
        return names[-1] == "kernel" and undecayed.isdisjoint(names)

    return jax.tree.map_with_path(is_matrix, params)
