"""Does a run learn anything? Told early, when a rate can still be changed."""

import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from greenjax.training.optim import peak_rate

SHORTEST = 100  # updates before which nobody expects anything


def time_to_tell(total: int, warmup: int) -> int:
    """The step from which on a loss without progress is worth a word."""
    return max(-(-total // 10), warmup, SHORTEST)


def nothing_learnt(config: ConfigDict, lines: Sequence[dict[str, Any]], total: int) -> str | None:
    """What to say where no loss of the lines of metrics.jsonl is below what a model gets that sees no image."""
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    bound, name = _without_images(config, lines)
    if bound is None or not losses or min(losses) < bound:
        return None
    return (
        f"the loss is {losses[-1]:.4g} after {lines[-1]['step']:,} of {total:,} updates, no better than {name},"
        f" {bound:.4g}: try another optim.base_lr, mostly a higher one"
        f" (now {config.optim.base_lr:g} x {config.data.batch_size}/256 = {peak_rate(config):.2g})"
    )


def _without_images(config: ConfigDict, lines: Sequence[dict[str, Any]]) -> tuple[float | None, str]:
    """A loss that needs no image, and its name; None where it is not known."""
    if config.task != "pretrain":
        return math.log(config.model.num_classes), "guessing"  # with label smoothing and mixed labels, too
    for line in lines:
        if line.get("best_constant_loss") is not None:
            return line["best_constant_loss"], "the best constant"
    # The targets of a unit have mean 0 and variance 1, or less where it is flat.
    return (1.0, "predicting each unit's mean") if config.method == "green" else (None, "")
