"""Evaluation: how well a model does on images it was not trained on, as numbers and as pictures.

held_out.py has the masked loss and what to compare it with, reconstruct.py draws what the model fills in, curve.py the
course of the loss; classify.py judges a classifier, confusion.py shows its mistakes; knn.py and probe.py classify
frozen features.
"""

from greenjax.evaluation.classify import (
    ClassificationTotals,
    Evaluation,
    Predictions,
    accuracy,
    evaluate,
    extract,
    told,
)
from greenjax.evaluation.held_out import HeldOut, Pictures
from greenjax.evaluation.knn import knn_scores
from greenjax.evaluation.monitor import Monitor, check_neighbours, features_of, knn, linear, pooled_features
from greenjax.evaluation.pictures.confusion import MOST_CLASSES, draw_confusion, draw_examples, most_confused
from greenjax.evaluation.pictures.curve import draw_accuracy_curve, draw_loss_curve, result
from greenjax.evaluation.pictures.reconstruct import draw_reconstructions
from greenjax.evaluation.probe import LinearFit, choose_l2, fit_linear
from greenjax.evaluation.results import read_results, results_table, write_predictions, write_results

__all__ = [
    "MOST_CLASSES",
    "ClassificationTotals",
    "Evaluation",
    "HeldOut",
    "LinearFit",
    "Monitor",
    "Pictures",
    "Predictions",
    "accuracy",
    "check_neighbours",
    "choose_l2",
    "draw_accuracy_curve",
    "draw_confusion",
    "draw_examples",
    "draw_loss_curve",
    "draw_reconstructions",
    "evaluate",
    "extract",
    "features_of",
    "fit_linear",
    "knn",
    "knn_scores",
    "linear",
    "most_confused",
    "pooled_features",
    "read_results",
    "result",
    "results_table",
    "told",
    "write_predictions",
    "write_results",
]
