"""Warns early where a run learns nothing, while its rate can still be changed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from greenjax.models.mim import predicts_normalised
from greenjax.runtime.files import read_metrics
from greenjax.runtime.processes import leads
from greenjax.training.optim import peak_rate

SHORTEST = 100  # updates before which nobody expects anything


def warn_if_nothing_is_learnt(config: ConfigDict, workdir: Path, step: int, total: int, warmup: int) -> None:
    """After the line of metrics of a step: one warning, at the first line at or after `time_to_tell`."""
    line_before = (step - 1) // config.log.every * config.log.every
    first = line_before < time_to_tell(total, warmup) <= step
    if leads() and first and (text := nothing_learnt(config, read_metrics(workdir), total)):
        logging.warning("%s", text)


def time_to_tell(total: int, warmup: int) -> int:
    """The step from which a loss without progress means something."""
    return max(-(-total // 10), warmup, SHORTEST)


def nothing_learnt(config: ConfigDict, lines: Sequence[dict[str, Any]], total: int) -> str | None:
    """The warning where no loss in the lines of metrics.jsonl is below that of a model that sees no image."""
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
    """The loss of a model that sees no image, and its name; None where it is not known."""
    if config.task == "detect":
        return None, ""
    if config.task != "pretrain":
        return math.log(config.model.num_classes), "guessing"  # with label smoothing and mixed labels, too
    for line in lines:
        if line.get("best_constant_loss") is not None:
            return line["best_constant_loss"], "the best constant"
    # The targets of a unit have mean 0 and variance 1, or less where it is flat.
    return (1.0, "predicting each unit's mean") if predicts_normalised(config) else (None, "")
