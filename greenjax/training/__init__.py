"""Training: the runs themselves. `pretrain` and `finetune` tell the story from a configuration to trained weights.

Read in this order: pretrain, finetune, evaluate, loop, guard, interrupt, step, state, start, together, optim,
sharding; metrics keeps what a run leaves behind. `run` does what a configuration's task says.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from greenjax.models.attention import check_attention
from greenjax.training.evaluate import evaluate_classifier, evaluate_knn
from greenjax.training.finetune import finetune
from greenjax.training.guard import DivergedError
from greenjax.training.interrupt import EXIT_CODE, InterruptedRun
from greenjax.training.pretrain import pretrain

__all__ = [
    "EXIT_CODE",
    "DivergedError",
    "InterruptedRun",
    "evaluate_classifier",
    "evaluate_knn",
    "finetune",
    "pretrain",
    "run",
]

TASKS = {
    "pretrain": pretrain,
    "finetune": finetune,
    "linear": finetune,
    "knn": evaluate_knn,
    "eval": evaluate_classifier,
}


def run(config: ConfigDict, workdir: Path) -> Any:
    """Does the task of a resolved configuration. Raises InputError for one that cannot run here."""
    check_attention(config.model.attention)
    return TASKS[config.task](config, workdir)
