"""Tasks: what a run does, each as one story from a configuration to its results.

Read in this order: pretrain, classify (fine-tuning and the linear probe), evaluate, knn, detect. `run` does the task of
a configuration; python.py has tasks as functions for callers with images of their own.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from greenjax.config.inherit import recorded
from greenjax.errors import InputError
from greenjax.runtime.files import expanded
from greenjax.tasks.classify import finetune
from greenjax.tasks.detect import detect, evaluate_detector
from greenjax.tasks.evaluate import evaluate_classifier
from greenjax.tasks.knn import evaluate_knn
from greenjax.tasks.pretrain import pretrain

__all__ = [
    "detect",
    "evaluate",
    "evaluate_classifier",
    "evaluate_detector",
    "evaluate_knn",
    "finetune",
    "pretrain",
    "run",
]


def evaluate(config: ConfigDict, workdir: Path) -> Any:
    """Judges what `config.init` is: a classifier or a detector."""
    detector = recorded(config.init).get("task") == "detect"
    return (evaluate_detector if detector else evaluate_classifier)(config, workdir)


TASKS = {
    "pretrain": pretrain,
    "finetune": finetune,
    "linear": finetune,
    "knn": evaluate_knn,
    "eval": evaluate,
    "detect": detect,
}


def run(config: ConfigDict, workdir: Path) -> Any:
    """Does the task of a resolved configuration. Raises InputError for one that cannot run here."""
    if config.task in ("knn", "eval") and config.init != "none" and not expanded(config.init).exists():
        raise InputError(f"init is {config.init!r}, which is not there: expected a run's workdir, or a file of weights")
    return TASKS[config.task](config, workdir)
