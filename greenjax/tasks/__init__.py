"""Tasks: what a run does, each as one story from a configuration to its results.

Read in this order: pretrain, classify (fine-tuning and the linear probe), evaluate, knn. `run` does the task of a
configuration.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from greenjax.tasks.classify import finetune
from greenjax.tasks.evaluate import evaluate_classifier
from greenjax.tasks.knn import evaluate_knn
from greenjax.tasks.pretrain import pretrain

__all__ = [
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
    return TASKS[config.task](config, workdir)
