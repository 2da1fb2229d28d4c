"""AdamW, and the learning rate per step."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from greenjax.errors import InputError


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
    peak, lowest = optim.base_lr * scale, optim.min_lr * scale
    if not warmup:
        return optax.cosine_decay_schedule(peak, total, alpha=lowest / peak)
    return optax.warmup_cosine_decay_schedule(optim.warmup_lr * scale, peak, warmup, total, lowest)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step multiplies: there it follows the step, not the updates made."""
    optim = config.optim
    clip = [optax.clip_by_global_norm(optim.clip)] if optim.clip else []
    return optax.chain(
        *clip,
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=decayed),
    )


def decayed(params: Any) -> Any:
    """True for matrices; not for biases, norms, position bias tables, mask tokens and Twins' positional encoding."""

    def is_matrix(path: tuple, _: Any) -> bool:
        names = [entry.key for entry in path]
        return names[-1] == "kernel" and "peg" not in names  # depth-wise: its kernel mixes no channels

    return jax.tree.map_with_path(is_matrix, params)
